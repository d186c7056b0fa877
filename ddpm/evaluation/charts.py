"""Charts of a few models as SVG for a page: text in the page's own colour, each model in its own and with its own mark.

What the marks mean is for the page to say, by `style_of`: names of models are none of the drawing's.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = Sequence[tuple[float, float]]

# Distinct on white and on black, and for most who see fewer colours; the marks help the others.
_COLOURS = ("#3b82c4", "#e07b00", "#2a9d63", "#d1495b", "#8e6cc0", "#8c7a5b")
_MARKS = (("o", "●"), ("s", "■"), ("^", "▲"), ("D", "◆"), ("v", "▼"))

# A colour that nothing else has, in the place of the page's own.
_INK = "#010203"

_SVG: Any = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "ddpm",  # equal charts are equal bytes
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _INK,
    "grid.alpha": 0.15,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@dataclass(frozen=True)
class Style:
    """How a model is drawn: its colour as CSS writes it, matplotlib's name of its marker, the same as a character."""

    colour: str
    marker: str
    symbol: str


def style_of(position: int) -> Style:
    """The style of the model at a position of the comparison, the same in all its charts."""
    return Style(_COLOURS[position % len(_COLOURS)], *_MARKS[position % len(_MARKS)])


def curves(
    lines: Sequence[Points],
    *,
    x: str,
    y: str,
    ticks: Sequence[int] | None = None,
    marks: bool = True,
    logarithmic: bool = True,
) -> str:
    """A line for each model. On logarithmic axes points that are not above 0 have no place and are left out.

    Args:
        ticks: the numbers that the x axis names; None: powers of ten.
        marks: draw the marks at the points, and not the line alone.
        logarithmic: both axes.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogFormatter, NullLocator

    figure, axes = _axes(x, y)
    if logarithmic:
        axes.set_xscale("log")
        axes.set_yscale("log")
    for position, points in enumerate(lines):
        style = style_of(position)
        shown = [(a, b) for a, b in points if (a > 0 and b > 0) or not logarithmic]
        axes.plot(
            [a for a, _ in shown],
            [b for _, b in shown],
            color=style.colour,
            marker=style.marker if marks else None,
            markersize=5,
            linewidth=1.5,
        )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if logarithmic:
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
    if ticks is not None:
        axes.xaxis.set_major_locator(FixedLocator(list(ticks)))
        axes.xaxis.set_minor_locator(NullLocator())
    return _svg(figure)


def scatter(points: Sequence[tuple[float, float] | None], *, x: str, y: str) -> str:
    """A mark for each model that has a point, both axes from 0 to 1."""
    figure, axes = _axes(x, y)
    for position, point in enumerate(points):
        if point is not None:
            style = style_of(position)
            axes.plot(*point, color=style.colour, marker=style.marker, markersize=9, linestyle="none")
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-0.03, 1.03)
    return _svg(figure)


def _axes(x: str, y: str) -> tuple[Figure, Axes]:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_SVG):
        figure = Figure(figsize=(4.8, 3.2), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.set_xlabel(x)
        axes.set_ylabel(y)
    return figure, axes


def _svg(figure: Figure) -> str:
    """The figure as an <svg> element that stands within HTML and names nothing outside of it."""
    import matplotlib

    stream = io.StringIO()
    with matplotlib.rc_context(_SVG):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    svg = text[text.index("<svg") :].replace(_INK, "currentColor").replace("xlink:href", "href")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Groups are named alike in every chart, and a page has many.
    return re.sub(r' xmlns(:xlink)?="[^"]*"|(?<=<g) id="[^"]*"', "", svg)
