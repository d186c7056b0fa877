"""Models that others published, as ours."""
