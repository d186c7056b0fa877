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
        Chart("training loss", "step", "loss", {"loss": column(loss, "step", "loss")}),
        Chart(
            "bound on the likelihood, term by term",
            "t",
            "bits/dim",
            {name: column(likelihood, "t", name) for name in ("train", "validation")},
        ),
    ]
    shown = [chart for chart in shown if any(chart.lines.values())]
    return charts(shown) if shown else None


def column(table: str, x: str, y: str) -> Points:
    """Two columns of a CSV text.

    Raises:
        ValueError: it has no such columns, or something else than numbers in them.
    """
    try:
        return [(float(row[x]), float(row[y])) for row in csv.DictReader(io.StringIO(table))]
    except (csv.Error, KeyError, TypeError) as error:
        raise ValueError(f"expected the columns {x} and {y}, with numbers ({type(error).__name__})") from None
