"""Where the computation runs: the device, and several processes together."""
