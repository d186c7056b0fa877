"""The proof that text_to_image.onnx of a cascade is the trained cascade."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.conditioning.columns import Given
from ddpm.conditioning.pictures import LowColumn, LowNoiseColumn
from ddpm.deploy.runtime import Float32
from ddpm.diffusion.noise import ImageNoise
from ddpm.drawer.cascade import Cascade
from ddpm.export.parity import by_torch, inputs_of, on_cpu, open_text_to_image, plans_of, raw_prompts, verdict
from ddpm.layout import LINKS
from ddpm.model import Model


def measure_cascade_parity(
    cascade: Cascade, file: Path, *, samples: int, steps: int, tolerance: float
) -> dict[str, Any]:
    """Hold each loop of the file against its link in torch, from raw prompts and on the same noise.

    In torch the upsampler takes the images that the base draws in the file: one of their levels more or less, by
    rounding, would show as a difference of the upsampler.

    Args:
        cascade: of trained models; at least one takes prompts.
        steps: of each link, at most.
        tolerance: largest absolute difference allowed, in [−1, 1].

    Returns:
        As of a file in `export.parity.measure_parity`.
    """
    prompts, session = raw_prompts(cascade.columns, samples), open_text_to_image(file)
    asked = cascade.given(samples, prompt=prompts)
    asked[LowNoiseColumn.name] = np.full(samples, cascade.low_noise, np.float32)
    asked[LowColumn.name] = np.zeros((samples, *cascade.base.codec.shape), np.uint8)  # until the base has drawn
    links = [_Link(name, cascade.links[name], place, asked, samples, steps) for place, name in enumerate(LINKS)]
    inputs = {each.name for each in (*session.get_inputs(), *session.get_overridable_initializers())}
    feed = {name: values for link in links for name, values in link.feed(inputs).items()}
    feed["prompt"] = np.array(prompts, object)
    low, *drawn = session.run(["base_images", "base_x0", "x0"], feed)
    links[1].given[LowColumn.name] = low
    difference = max(link.difference(x0) for link, x0 in zip(links, drawn, strict=True))
    return verdict(file, difference, tolerance)


class _Link:
    """A trained link, with its plan and its own noise."""

    def __init__(self, name: str, model: Any, seed: int, asked: Given, samples: int, steps: int) -> None:
        """
        Args:
            asked: values of columns, [samples, ...]; the others are drawn.
        """
        assert isinstance(model, Model)
        self._name, self._model = name, on_cpu(model)
        self._plan = next(iter(plans_of(model, min(steps, len(model.schedule))).values()))
        self._noise = partial(ImageNoise, seed, samples, model.codec.network_shape)
        self.given: dict[str, NDArray[Any]] = {
            column.name: asked[column.name] if column.name in asked else column.draw(samples, seed=seed)
            for column in model.columns
        }

    def feed(self, inputs: Collection[str]) -> dict[str, NDArray[Any]]:
        """What the file's inputs have of this link."""
        draw = self._noise().draw
        own = {**self.given, **inputs_of(self._plan, draw(), draw)}
        named = {name: values for key, values in own.items() for name in (key, f"{self._name}_{key}")}
        return {name: values for name, values in named.items() if name in inputs}

    def difference(self, x0: Float32) -> float:
        """The largest one between what the link draws in torch and x0, what the file draws."""
        draw = self._noise().draw
        return float(np.abs(by_torch(self._model, self._plan, draw(), draw, self.given) - x0).max())
