"""Data of which a part is known, as the executors of a plan see it (needs no library)."""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

Array = TypeVar("Array")


class Known(NamedTuple, Generic[Array]):
    """The known part of a batch, which executors put back into every x̂_0 (Nichol et al. 2022, GLIDE, §4.2).

    Attributes:
        x0: [N, C, *sides], in [−1, 1] where it is known.
        mask: [N, 1, *sides] bool, True where it is.
    """

    x0: Array
    mask: Array
