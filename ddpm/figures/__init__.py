"""What the numbers of metrics.json mean: names, protocol, comparison, promotion, drift. No torch, no MLflow."""
