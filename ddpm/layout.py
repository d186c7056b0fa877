"""Where the stages read and write, below the project's root."""

from __future__ import annotations

from pathlib import Path

PREPARED = Path("prepared")
EXTRACTOR = Path("extractor")
MODELS = Path("models")
REPORTS = Path("reports")
DEPLOY = Path("deploy")
# Beside the pipeline: the page of a comparison, and the numbers in it.
COMPARISON = Path("comparison")
COMPARISON_PAGE, COMPARISON_RECORD = "report.html", "comparison.json"
# Unfinished training: outside every DVC output, since DVC removes those before it runs a stage again.
TRAINING_STATES = Path(".ddpm/training")
