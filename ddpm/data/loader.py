"""The order of training batches: a function of the seed and the step, so that a resumed run needs no state for it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ddpm.codecs.scale import encode_pixels
from ddpm.conditioning.values import ValuesAt

if TYPE_CHECKING:
    from torch import Tensor


class Images(Protocol):
    """What is read in batches: `ddpm.data.store.Split`, or anything like it."""

    def __len__(self) -> int: ...

    def rows(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        """The data at these positions: images [n, H, W, C] uint8, or of another kind."""
        ...


class TrainingImages(Images, Protocol):
    """What a training loop reads: data that go straight to where they are wanted."""

    def rows(self, indices: NDArray[np.int64], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """As of `Images`, written into `out` if there is one."""
        ...


@dataclass(frozen=True)
class TrainingData:
    """What a training loop reads.

    Attributes:
        images: as they are stored.
        encode: stored data [N, ...] → [N, C, ...] in about [−1, 1], where they are.
        sample: of stored data that are distributions: what `encode` made of them, and what makes noise like a tensor
            → x_0 [N, C, ...], another one at every step. None: `encode` made x_0.
        columns: what accompanies the data, by name.
        horizontal_flip: mirror each datum with probability 1/2.
    """

    images: TrainingImages
    encode: Callable[[Tensor], Tensor] = encode_pixels
    columns: Mapping[str, ValuesAt] = field(default_factory=dict)
    horizontal_flip: bool = False
    sample: Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor] | None = None


class InMemoryImages:
    """An array of images [N, H, W, C] uint8 as `Images`, and their labels [N] int64 if they have any."""

    captions = None
    hints = None
    embeddings = None
    pictures = None

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64] | None = None) -> None:
        self._images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self._images)

    def rows(self, indices: NDArray[np.int64], out: NDArray[Any] | None = None) -> NDArray[np.uint8]:
        """The images at these positions, [n, H, W, C]."""
        return np.take(self._images, indices, axis=0, out=out)


def batch_indices(count: int, batch_size: int, step: int, seed: int) -> NDArray[np.int64]:
    """Positions of the images of a step's batch, [batch_size].

    The steps cut an endless row of shuffled epochs into batches: every image is seen once an epoch, and a batch may
    span two epochs, or several where the data is smaller than the batch.
    """
    first, last = step * batch_size, (step + 1) * batch_size
    parts = []
    for epoch in range(first // count, (last - 1) // count + 1):
        start = epoch * count
        parts.append(_epoch_order(count, seed, epoch)[max(first - start, 0) : last - start])
    return np.concatenate(parts)


@functools.lru_cache(maxsize=2)
def _epoch_order(count: int, seed: int, epoch: int) -> NDArray[Any]:
    return np.random.default_rng([seed, epoch]).permutation(count)
