"""numpy's side of `conditioning.guidance`: a network of onnxruntime with its condition, and what guides it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.conditioning.columns import Given

Float32 = NDArray[np.float32]
Denoise = Callable[[Float32, NDArray[Any]], Float32]


class Bound:
    """A network with its condition."""

    def __init__(self, session: Any, given: Given) -> None:
        self._session, self._given = session, given

    def __call__(self, x: Float32, t: NDArray[Any]) -> Float32:
        return self._session.run(None, {"x": x, "t": t, **self._given})[0]


class ClassifierFree(Bound):
    """It moves away from the network with the null values; both halves are one batch."""

    def __init__(self, session: Any, given: Given, null: Given) -> None:
        super().__init__(session, given)
        self._null = null

    def guided(self, x: Float32, t: NDArray[Any], weight: float) -> Float32:
        """The output at guidance weight w: of the first C channels, conditional + w (conditional − unconditional)."""
        both = {name: np.concatenate([values, self._null[name]]) for name, values in self._given.items()}
        feed = {"x": np.concatenate([x, x]), "t": np.concatenate([t, t]), **both}
        conditional, unconditional = np.split(self._session.run(None, feed)[0], 2)
        return _away_from(conditional, unconditional, weight, x.shape[1])


class Autoguidance:
    """It moves away from a weaker network."""

    def __init__(self, strong: Denoise, weak: Denoise) -> None:
        self._strong, self._weak = strong, weak

    def __call__(self, x: Float32, t: NDArray[Any]) -> Float32:
        return self._strong(x, t)

    def guided(self, x: Float32, t: NDArray[Any], weight: float) -> Float32:
        return _away_from(self._strong(x, t), self._weak(x, t), weight, x.shape[1])


class Gradient:
    """It moves along the gradient of a classifier or a CLIP."""

    def __init__(self, denoise: Denoise, session: Any, given: Given) -> None:
        """
        Args:
            session: of guide.onnx: (x, t, and `label` or `prompt`) → `gradient`, ∇_x f(x_t, t) [N, C, ...], and
                `scale` [N, 1, ...]: at weight w the output moves by w · scale · gradient.
            given: the label or the prompt.
        """
        self._denoise, self._session, self._given = denoise, session, given

    def __call__(self, x: Float32, t: NDArray[Any]) -> Float32:
        return self._denoise(x, t)

    def guided(self, x: Float32, t: NDArray[Any], weight: float) -> Float32:
        out = self._denoise(x, t)
        gradient, scale = self._guide(x, t)
        out[:, : x.shape[1]] += np.float32(weight) * scale * gradient
        return out

    def gradient(self, x: Float32, t: NDArray[Any]) -> Float32:
        return self._guide(x, t)[0]

    def _guide(self, x: Float32, t: NDArray[Any]) -> tuple[Float32, Float32]:
        return tuple(self._session.run(["gradient", "scale"], {"x": x, "t": t, **self._given}))


def _away_from(strong: Float32, weak: Float32, weight: float, channels: int) -> Float32:
    strong[:, :channels] += np.float32(weight) * (strong[:, :channels] - weak[:, :channels])
    return strong
