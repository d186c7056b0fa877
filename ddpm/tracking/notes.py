"""What stands at the top of a run's page in MLflow, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from ddpm.figures import FIGURES, Reading, number
from ddpm.layout import COMPARISON_PAGE

NOTE = "mlflow.note.content"


def run_note(metrics: Mapping[str, float], protocol: str, run_id: str) -> str:
    """A model's figures, how they were measured, and its samples."""
    rows = [
        f"| {figure.name} | {reading} | {'' if reading.real is None else number(reading.real)} |"
        for figure in FIGURES
        if (reading := Reading.of(metrics, figure.key))
    ]
    return "\n".join(
        [f"| protocol {protocol} | | real data |", "|---|---|---|", *rows, "", _picture("samples.png", run_id)]
    )


def comparison_note(record: Mapping[str, Any], run_id: str) -> str:
    """The models that were compared, what they are, and a link to the page."""
    models = [
        f"| {model['name']} | {model['version'] or model['model']} | {model['protocol'] or 'not evaluated'} |"
        for model in record["models"]
    ]
    differences = [f"- {difference}" for difference in record["differences"]]
    return "\n".join(
        [
            f"[The comparison]({_artifact(COMPARISON_PAGE, run_id)})",
            "",
            "| model | version | protocol |",
            "|---|---|---|",
            *models,
            *(["", "Not ranked: the protocols differ.", "", *differences] if differences else []),
        ]
    )


def _picture(path: str, run_id: str) -> str:
    return f"![{path}]({_artifact(path, run_id)})"


def _artifact(path: str, run_id: str) -> str:
    """Where MLflow's server has an artifact, relative to its pages; of other addresses, and of data within the note,
    they show no picture."""
    return f"get-artifact?path={quote(path)}&run_uuid={run_id}"
