"""Where the stages read and write, below the project's root; and how a model that is elsewhere is told from a path."""

from __future__ import annotations

from pathlib import Path

PREPARED = Path("prepared")
EXTRACTOR = Path("extractor")
MODELS = Path("models")
REPORTS = Path("reports")
DEPLOY = Path("deploy")
# Beside the pipeline: the page of a comparison, the numbers in it, and what each model draws of the same noise.
COMPARISON = Path("comparison")
COMPARISON_PAGE, COMPARISON_RECORD, COMPARISON_PICTURE = "report.html", "comparison.json", "samples.png"
# Unfinished training: outside every DVC output, since DVC removes those before it runs a stage again.
TRAINING_STATES = Path(".ddpm/training")
# Features of real images, which every evaluation needs again; may be deleted at any time.
FEATURES = Path(".ddpm/features")


def is_uri(model: str) -> bool:
    """Whether MODEL names something in MLflow, and not a directory."""
    return model.startswith(("models:/", "runs:/"))
