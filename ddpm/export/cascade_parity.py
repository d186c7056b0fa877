"""The proof that text_to_image.onnx of a cascade is the trained cascade."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.conditioning.columns import Column, Given
from ddpm.diffusion.noise import ImageNoise
from ddpm.drawer.cascade import Cascade
from ddpm.export.parity import by_torch, inputs_of, on_cpu, open_text_to_image, plans_of, raw_prompts, verdict
from ddpm.model import Model


def measure_cascade_parity(
    cascade: Cascade, file: Path, *, samples: int, steps: int, tolerance: float
) -> dict[str, Any]:
    """Hold each loop of the file against its link in torch, from raw prompts and on the same noise.

    In torch a link takes what the links before it draw in the file: one level of an image more or less, by rounding,
    would show as a difference of the link.

    Args:
        cascade: of trained models; at least one takes prompts.
        steps: of each link, at most.
        tolerance: largest absolute difference allowed, in [−1, 1].

    Returns:
        As of a file in `export.parity.measure_parity`.
    """
    prompts, session = raw_prompts(cascade.columns, samples), open_text_to_image(file)
    asked = cascade.given(samples, prompt=prompts)
    links = [_Link(cascade, name, place, asked, samples, steps) for place, name in enumerate(cascade.links)]
    inputs = {each.name for each in (*session.get_inputs(), *session.get_overridable_initializers())}
    feed = {name: values for link in links for name, values in link.feed(inputs).items()}
    feed["prompt"] = np.array(prompts, object)
    drawn = dict(zip((each.name for each in session.get_outputs()), session.run(None, feed), strict=True))
    difference = max(link.difference(drawn, last=link is links[-1]) for link in links)
    return verdict(file, difference, tolerance)


class _Link:
    """A trained link, with its plan and its own noise."""

    def __init__(self, cascade: Cascade, name: str, seed: int, asked: Given, samples: int, steps: int) -> None:
        """
        Args:
            asked: values of the cascade's columns, [samples, ...]; the others are drawn.
        """
        link = cascade.wiring[name]
        assert isinstance(link.drawer, Model)
        self._name, self._model = name, on_cpu(link.drawer)
        self._fed = {column: f"{source}_{cascade.links[source].codec.name}" for column, source in link.fed.items()}
        self._data = f"{name}_{self._model.codec.name}"
        self._plan = next(iter(plans_of(self._model, min(steps, len(self._model.schedule))).values()))
        self._noise = partial(ImageNoise, seed, samples, self._model.codec.network_shape)

        def value(column: Column) -> NDArray[Any]:
            if column.name in link.fixed:
                return column.read(link.fixed[column.name], samples)
            return asked[column.name] if column.name in asked else column.draw(samples, seed=seed)

        self._given = {column.name: value(column) for column in self._model.columns if column.name not in link.fed}

    def feed(self, inputs: Collection[str]) -> dict[str, NDArray[Any]]:
        """What the file's inputs have of this link."""
        draw = self._noise().draw
        own = {**self._given, **inputs_of(self._plan, draw(), draw)}
        named = {name: values for key, values in own.items() for name in (key, f"{self._name}_{key}")}
        return {name: values for name, values in named.items() if name in inputs}

    def difference(self, drawn: Mapping[str, NDArray[Any]], *, last: bool) -> float:
        """The largest one between what the link draws in torch and what the file draws, and of what it hands on.

        Args:
            drawn: the file's outputs, by their names.
            last: whether this is the last link.
        """
        draw = self._noise().draw
        given = {**self._given, **{column: drawn[output] for column, output in self._fed.items()}}
        x0 = by_torch(self._model, self._plan, draw(), draw, given)
        if last:
            return float(np.abs(x0 - drawn["x0"]).max())
        found = drawn[f"{self._name}_x0"]
        return max(float(np.abs(x0 - found).max()), self._of_data(found, drawn[self._data]))

    def _of_data(self, x0: NDArray[np.float32], data: NDArray[Any]) -> float:
        """The largest difference between the data that the file makes of x_0, for the next link, and those that the
        codec makes of it. A level of an image more or less is rounding.
        """
        difference = np.abs(self._model.codec.decode(x0).astype(np.float64) - data).max()
        return float(difference if data.dtype != np.uint8 else max(0.0, difference - 1) / 127.5)
