"""Training: the loop, the moving average of the weights, and states that a killed run continues from."""
