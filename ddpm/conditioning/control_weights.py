"""How much a control adds: numbers of a plan's row, as a column and as what executors ask for (numpy only)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ddpm.conditioning.pictures import repeated
from ddpm.errors import brief


@dataclass(frozen=True)
class ControlWeightsColumn:
    """The weight of what a control adds, float32 [3]: in the evaluation with the condition; in that without, of
    classifier-free guidance; and the factor by which the weight of each residual is smaller than the next one's. A
    row of the sampling plan has them; 1 where it has none.
    """

    name: ClassVar[str] = "control_weights"
    key: ClassVar[str] = "control"
    shape: ClassVar[tuple[int, ...]] = (3,)
    dtype: ClassVar[np.dtype[Any]] = np.dtype(np.float32)
    null: ClassVar[None] = None
    blank: ClassVar[int] = 1

    def read(self, asked: Any, count: int, *, first: int = 0) -> NDArray[np.float32]:
        """As of `Column`; `asked` is [3] or [n, 3]."""
        values = np.asarray(asked)
        if values.shape[-1:] != self.shape or values.dtype.kind not in "iuf":
            raise ValueError(f"{self.name}: expected three numbers, found {brief(asked)}")
        return repeated(values.astype(np.float32).reshape(-1, 3), count, first)

    def draw(self, count: int, *, seed: int, first: int = 0) -> NDArray[np.float32]:
        return np.ones((count, *self.shape), np.float32)

    def unconditional(self, values: Any) -> Any:
        """The values [N, 3] of the evaluation without a condition."""
        return values[:, UNCONDITIONAL]


UNCONDITIONAL = [1, 1, 2]  # which of its weights has each one's place in the evaluation without a condition

WEIGHTS = ControlWeightsColumn.name
CONTROL_PLAN = "control_plan"  # the input of a loop in a graph that has them for each row


def weights_of(given: Mapping[str, NDArray[Any]], weights: tuple[float, ...] | None) -> dict[str, NDArray[np.float32]]:
    """The column of weights with those of a plan's row.

    Args:
        given: values of columns, this one among them.
        weights: of every datum; None: as they are given.
    """
    own = given[WEIGHTS]
    return {WEIGHTS: own if weights is None else np.tile(np.array(weights, np.float32), (len(own), 1))}


class Steered:
    """A denoiser of torch or of numpy with a control. Executors ask it for another one where a row of the plan says how
    much the control adds."""

    def __init__(self, with_weights: Callable[[tuple[float, ...] | None], Any]) -> None:
        """
        Args:
            with_weights: makes a denoiser with the three weights of a row; None: with those that are given.
        """
        self.controlled = with_weights
        self._as_given = with_weights(None)

    def __call__(self, x: Any, t: Any) -> Any:
        return self._as_given(x, t)

    def guided(self, x: Any, t: Any, weight: float) -> Any:
        """As of `conditioning.guidance.Guided`."""
        return self._as_given.guided(x, t, weight)

    def gradient(self, x: Any, t: Any) -> Any:
        """As of `conditioning.guidance.Gradient`."""
        return self._as_given.gradient(x, t)
