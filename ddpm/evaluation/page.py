"""A comparison as one HTML page that needs nothing but itself: no other file, no network, no script."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from PIL import Image

from ddpm.evaluation.charts import curves, scatter, style_of
from ddpm.evaluation.pictures import credit, png
from ddpm.figures.comparison import Compared, Comparison, Curve, best, by_protocol, differences
from ddpm.figures.figure import FIGURES, Figure, number

TEMPLATE = "comparison.html"


@dataclass(frozen=True)
class Pictures:
    """What the models draw of the same noise: a picture a model, or a single one of all of them."""

    title: str
    images: Sequence[Image.Image]


def page(comparison: Comparison, pictures: Sequence[Pictures]) -> str:
    """The page. Equal comparisons are equal pages."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string(resources.files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8"))
    models = comparison.models
    return template.render(
        models=[
            {"name": model.name, "style": style_of(position), "version": model.recorded.version}
            for position, model in enumerate(models)
        ],
        ranked=comparison.ranked,
        differences={name: list(values.values()) for name, values in differences(models).items()},
        groups=[_group(protocol, group) for protocol, group in by_protocol(models).items()],
        pictures=[_row(row, models, credit("; ".join(comparison.attributions) or None)) for row in pictures],
        charts=[chart for chart in _charts(comparison) if chart],
        conditions=comparison.conditions,
        attributions=comparison.attributions,
    )


def _group(protocol: str | None, group: Sequence[Compared]) -> dict[str, Any]:
    """The table of the models of one protocol."""
    shown = [figure for figure in FIGURES.values() if any(figure.key in model.recorded.metrics for model in group)]
    fields = {name: value for name, value in group[0].recorded.protocol.items() if name != "id"}
    return {
        "protocol": protocol,
        "fields": fields,
        "models": [model.name for model in group],
        "rows": [_figure_row(figure, group) for figure in shown],
    }


def _figure_row(figure: Figure, group: Sequence[Compared]) -> dict[str, Any]:
    readings = [model.reading(figure.key) for model in group]
    chosen = best(group, figure)
    real = next((reading.column for reading in readings if reading and reading.beside), "")
    return {
        "name": figure.named(group[0].recorded.protocol),
        "better": figure.better,
        "cells": [
            {"text": "–" if reading is None else str(reading), "best": model.name in chosen}
            for model, reading in zip(group, readings, strict=True)
        ],
        "real": real,
    }


def _row(row: Pictures, models: Sequence[Compared], facts: Mapping[str, str]) -> dict[str, Any]:
    alone = len(row.images) == len(models)
    names = [model.name for model in models] if alone else [", ".join(model.name for model in models)]
    cells = [
        {"source": _inline(image, facts), "alt": f"{row.title}: {name}", "width": image.width, "height": image.height}
        for image, name in zip(row.images, names, strict=True)
    ]
    return {"title": row.title, "cells": cells, "span": 1 if alone else len(models)}


def _inline(image: Image.Image, facts: Mapping[str, str]) -> str:
    return f"data:image/png;base64,{base64.b64encode(png(image, facts, optimize=True)).decode()}"


def _charts(comparison: Comparison) -> list[dict[str, str] | None]:
    guidance = [_over_guidance(comparison, key, lines) for key, lines in comparison.over_guidance.items()]
    return [_over_steps(comparison), *guidance, _likelihood(comparison.models), _coverage(comparison.models)]


def _over_guidance(comparison: Comparison, key: str, lines: Sequence[Curve]) -> dict[str, str]:
    figure = FIGURES[key]
    name = figure.named(comparison.conditions)
    said = [
        f"{model.name} {', '.join(f'{number(value)} at {scale:g}' for scale, value in line)}"
        for model, line in zip(comparison.models, lines, strict=True)
        if line
    ]
    drawing = curves(lines, x="guidance scale", y=name, logarithmic=False)
    found = comparison.conditions
    note = (
        f"{found['samples']} samples of seed {found['seed']}, each model by its own plan, of which the scale alone "
        f"changes. 1 is no guidance, by a classifier 0. {figure.better.capitalize()} is better."
    )
    return _chart(f"{name} over the guidance scale", drawing, said, note)


def _over_steps(comparison: Comparison) -> dict[str, str] | None:
    lines = comparison.over_steps
    name = FIGURES[comparison.key].named(comparison.conditions)
    title = f"{name} over the number of steps"
    said = [
        f"{model.name} {', '.join(f'{number(value)} in {evaluations:g}' for evaluations, value in line)}"
        for model, line in zip(comparison.models, lines, strict=True)
    ]
    ticks = sorted({int(evaluations) for line in lines for evaluations, _ in line})
    drawing = curves(lines, x="evaluations of networks an image", y=name, ticks=ticks)
    note = f"All measured alike: {_conditions(comparison)}{_guidance(comparison)}. Lower is better."
    return _chart(title, drawing, said, note)


def _guidance(comparison: Comparison) -> str:
    """Whose guidance there is, as the end of a sentence."""
    said = []
    for name, own in comparison.guidance.items():
        by, interval = own["guide"], own["guidance_interval"]
        within = f" in [{interval[0]:g}, {interval[1]:g}]" if interval else ""
        said.append(f"{name} scale {own['guidance_scale']:g}{within}{f' by {by}' if by else ''}")
    return f", each with its own guidance: {', '.join(said)}" if said else ""


def _conditions(comparison: Comparison) -> str:
    found = comparison.conditions
    noise = "" if found["eta"] is None else f", eta {found['eta']:g}"
    return f"{found['samples']} samples of seed {found['seed']} by {found['sampler']}{noise}"


def _likelihood(models: Sequence[Compared]) -> dict[str, str] | None:
    """As in Nichol & Dhariwal 2021, figure 2, without the prior's term; from 1, since the axis is logarithmic."""
    lines = [[(t + 1, bits) for t, bits in model.recorded.likelihood[:-1]] for model in models]
    if not any(lines):
        return None
    said = [
        f"{model.name} {number(sum(bits for _, bits in terms))} bits/dim, {number(terms[0][1])} of them the decoder's"
        for model in models
        if (terms := model.recorded.likelihood)
    ]
    drawing = curves(lines, x="timestep (1: the decoder's)", y="bits per dimension", marks=False)
    return _chart(
        "Likelihood over the timesteps",
        drawing,
        said,
        "Each timestep's term of the variational bound, of validation images.",
    )


def _coverage(models: Sequence[Compared]) -> dict[str, str] | None:
    found = [(model.recorded.metrics.get("recall"), model.recorded.metrics.get("precision")) for model in models]
    points = [None if recall is None or precision is None else (recall, precision) for recall, precision in found]
    if not any(points):
        return None
    said = [
        f"{model.name} precision {number(point[1])}, recall {number(point[0])}"
        for model, point in zip(models, points, strict=True)
        if point
    ]
    drawing = scatter(points, x="recall: share of the data that is covered", y="precision: share of good samples")
    mixed = " Not measured under one protocol: not to be ranked." if len(by_protocol(models)) > 1 else ""
    return _chart("Precision and recall", drawing, said, f"As recorded when each model was evaluated.{mixed}")


def _chart(title: str, drawing: str, said: Sequence[str], note: str) -> dict[str, str]:
    return {"title": title, "drawing": drawing, "alt": f"{title}: {'; '.join(said)}", "note": note}
