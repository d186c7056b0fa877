"""What stands at the top of a run's page in MLflow, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from ddpm.figures.figure import FIGURES, Reading

NOTE = "mlflow.note.content"


def run_note(
    metrics: Mapping[str, float], protocol: Mapping[str, Any], run_id: str, attribution: str | None = None
) -> str:
    """A model's figures, how they were measured, its samples, and the credit for the training images.

    Args:
        protocol: protocol.json.
    """
    rows = [
        f"| {figure.named(protocol)} | {reading} | {reading.column} |"
        for figure in FIGURES.values()
        if (reading := Reading.of(metrics, figure.key))
    ]
    picture = f"![samples]({artifact('samples.png', run_id)})"
    credit = [] if attribution is None else ["", attribution]
    return "\n".join([f"| protocol {protocol['id']} | | real data |", "|---|---|---|", *rows, "", picture, *credit])


def comparison_note(record: Mapping[str, Any], *, page: str, picture: str) -> str:
    """The figures of comparison.json, with addresses of its page and of its picture."""
    models = record["models"]
    protocols = [record["protocols"].get(model["protocol"], {}) for model in models]
    rows = [
        f"| {figure.named(*protocols)} | {' | '.join(str(reading or '–') for reading in readings)} |"
        for figure in FIGURES.values()
        if any(readings := [Reading.of(model["metrics"], figure.key) for model in models])
    ]
    differing = ", ".join(record["differences"])
    return "\n".join(
        [
            f"[The comparison as a page]({page})",
            "",
            f"| | {' | '.join(model['name'] for model in models)} |",
            f"|---|{'---|' * len(models)}",
            f"| protocol | {' | '.join(model['protocol'] or 'not evaluated' for model in models)} |",
            *rows,
            *(["", f"Not to be ranked: their protocols differ in {differing}."] if differing else []),
            "",
            f"![samples of the same noise, one block a model]({picture})",
        ]
    )


def artifact(path: str, run_id: str) -> str:
    """Where MLflow's server has an artifact, relative to its pages.

    Those show pictures of other addresses, but none that is within the text.
    """
    return f"get-artifact?path={quote(path)}&run_uuid={run_id}"
