"""The curves of a training and of a likelihood as a picture, which is seen where their interactive plots cannot be."""

from __future__ import annotations

import csv
import io

from PIL import Image

from ddpm.evaluation.plots import Chart, charts

Points = list[tuple[float, float]]


def curves(loss: str, likelihood: str) -> Image.Image | None:
    """The training loss beside the terms of the likelihood's bound; None where there is neither.

    Args:
        loss: a loss.csv; empty of an imported model.
        likelihood: an nll.csv, whose t is that of the papers: L_0 to L_T.
    """
    shown = [
        Chart("training loss", "step", "loss", {"loss": _column(loss, "step", "loss")}),
        Chart(
            "bound on the likelihood, term by term",
            "t",
            "bits/dim",
            {name: _column(likelihood, "t", name) for name in ("train", "validation")},
        ),
    ]
    shown = [chart for chart in shown if any(chart.lines.values())]
    return charts(shown) if shown else None


def _column(table: str, x: str, y: str) -> Points:
    return [(float(row[x]), float(row[y])) for row in csv.DictReader(io.StringIO(table))]
