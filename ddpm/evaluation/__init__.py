"""Evaluation: features, metrics with their protocol, pictures."""
