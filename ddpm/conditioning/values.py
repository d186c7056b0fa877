"""The values that data have of a column (numpy only)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class ValuesAt(Protocol):
    """The values that data have of a column, wherever they come from."""

    def at(self, indices: NDArray[np.int64], step: int = 0) -> NDArray[Any]:
        """As of `Values`."""
        ...


@dataclass(frozen=True)
class Values:
    """What data have of a column: of each datum one value, or several to choose from.

    Attributes:
        values: [M, *shape].
        ends: of n data, [n] int64: datum i has the values from ends[i − 1] to ends[i]; None: one each, M = n.
    """

    values: NDArray[Any]
    ends: NDArray[np.int64] | None = None

    def at(self, indices: NDArray[np.int64], step: int = 0) -> NDArray[Any]:
        """A value of each of these data, [N, *shape]. Which one of several follows from the datum and the step."""
        if self.ends is None:
            return self.values[indices]
        first = np.where(indices > 0, self.ends[indices - 1], 0)
        count = (self.ends[indices] - first).astype(np.uint64)
        return self.values[first + (_mixed(indices, step) % count).astype(np.int64)]


def _mixed(indices: NDArray[np.int64], step: int) -> NDArray[np.uint64]:
    """Numbers that look random, of each index and the step: SplitMix64 (Steele et al. 2014)."""
    mixed = indices.astype(np.uint64) + np.uint64(step) * np.uint64(2**32)
    mixed = mixed * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))
