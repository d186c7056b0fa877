"""Parts of a batch: data of several seeds that are drawn together (numpy only)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ddpm.conditioning.columns import Column, Given
from ddpm.errors import NotFiniteError

Float32 = NDArray[np.float32]

# What becomes of a part: data [count, *shape] as they are stored, or why there are none.
Drawn = NDArray[Any] | NotFiniteError

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """The data `first` .. `first + count − 1` of a seed."""

    seed: int
    first: int
    count: int
    given: Given
    """A value of each of the drawer's columns, [count, ...], as `Drawer.given` has them."""


def together(columns: Sequence[Column], parts: Sequence[Part]) -> dict[str, NDArray[Any]]:
    """The values of all parts as those of one batch. A part without a column gets what the column draws if nobody asks.

    Args:
        columns: that the parts may have values of.
    """
    names = {name for part in parts for name in part.given}
    return {
        column.name: np.concatenate(
            [
                part.given[column.name] if column.name in part.given else column.draw(part.count, seed=0)
                for part in parts
            ]
        )
        for column in columns
        if column.name in names
    }


def data_of(drawn: T | NotFiniteError) -> T:
    """What was drawn.

    Raises:
        NotFiniteError: it holds NaN or infinite values.
    """
    if isinstance(drawn, NotFiniteError):
        raise drawn
    return drawn
