"""Prefect flows: when and where the pipeline runs. What a stage does stands in dvc.yaml and `ddpm`."""
