"""Pictures of points and sequences: samples beside real ones, the forward and the reverse process."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddpm.evaluation.pictures import WIDTH

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg

Values = NDArray[np.float32]

SHOWN = 2000  # points or sequences to choose for a picture
DOT_COUNT, LINE_COUNT = 2000, 4
PANEL_WIDTH = 2.4  # inches


def side_by_side(titled: Sequence[tuple[str, Values]]) -> Image.Image:
    """A panel for each set of data [N, C] or [N, C, L], all on the axes of the first."""
    return _panels([list(titled)])


def processes(rows: Sequence[tuple[str, Sequence[tuple[int, Values]]]]) -> Image.Image:
    """A row of panels for each named process: (t as in the papers, data at it) from left to right."""
    return _panels([[(f"{name}, t = {t}", values) for t, values in states] for name, states in rows])


@dataclass(frozen=True)
class Chart:
    """Lines over one x axis; y is logarithmic, and values that are not above 0 are left out."""

    title: str
    x: str
    y: str
    lines: Mapping[str, Sequence[tuple[float, float]]]


def charts(shown: Sequence[Chart]) -> Image.Image:
    """Charts from left to right."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(shown), 3.4), dpi=max(100, math.ceil(WIDTH / 5.2)), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for number, chart in enumerate(shown):
        axes = figure.add_subplot(1, len(shown), number + 1)
        for name, points in chart.lines.items():
            above = [(x, y) for x, y in points if y > 0]
            marker = "o" if len(above) == 1 else None
            axes.plot([x for x, _ in above], [y for _, y in above], label=name, linewidth=1.2, marker=marker)
        axes.set_title(chart.title, fontsize=10)
        axes.set_xlabel(chart.x)
        axes.set_ylabel(chart.y)
        axes.set_yscale("log")
        axes.grid(alpha=0.2)
        if len(chart.lines) > 1:
            axes.legend(frameon=False)
    return _drawn(canvas)


def _drawn(canvas: FigureCanvasAgg) -> Image.Image:
    stream = io.BytesIO()
    canvas.print_figure(stream, format="png")
    return Image.open(stream).convert("RGB")


def _panels(rows: list[list[tuple[str, Values]]]) -> Image.Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = max(map(len, rows))
    dpi = max(100, math.ceil(WIDTH / (PANEL_WIDTH * columns)))
    figure = Figure(figsize=(PANEL_WIDTH * columns, 2.6 * len(rows)), dpi=dpi, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    limits = _limits(rows[0][0][1])
    for number, row in enumerate(rows):
        for column, (title, values) in enumerate(row):
            axes = figure.add_subplot(len(rows), columns, number * columns + column + 1)
            axes.set_title(title, fontsize=8)
            axes.tick_params(labelsize=6)
            _draw(axes, values, limits)
    return _drawn(canvas)


def _limits(values: Values) -> tuple[Values, Values]:
    """The range of each channel, with room around it."""
    flat = values.reshape(*values.shape[:2], -1)
    low, high = flat.min((0, 2)), flat.max((0, 2))
    room = np.maximum(0.25 * (high - low), 1e-3)
    return low - room, high + room


def _draw(axes: Axes, values: Values, limits: tuple[Values, Values]) -> None:
    """Points by their first two coordinates, or by their only one; sequences as lines, a channel a colour."""
    low, high = limits
    if values.ndim == 3:
        for channel, colour in zip(range(values.shape[1]), _colours(), strict=False):
            axes.plot(values[:LINE_COUNT, channel].T, color=colour, linewidth=0.8, alpha=0.8)
        axes.set_ylim(float(low.min()), float(high.max()))
    elif values.shape[1] == 1:
        axes.hist(values[:, 0], bins=64, range=(float(low[0]), float(high[0])), density=True)
    else:
        axes.scatter(values[:DOT_COUNT, 0], values[:DOT_COUNT, 1], s=1, linewidths=0)
        axes.set_xlim(float(low[0]), float(high[0]))
        axes.set_ylim(float(low[1]), float(high[1]))
        axes.set_aspect("equal")


def _colours() -> list[Any]:
    return [f"C{number}" for number in range(10)]
