"""Noise that belongs to an image, not to a batch (numpy only).

Image i of seed s draws from its own counter-based stream, so it comes out the same in a batch of 1 or of 64, in the
trained model and in the exported one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def stream(seed: int, index: int, *, purpose: int = 0) -> np.random.Generator:
    """The random numbers of one image of a seed.

    Args:
        seed: 0 ≤ seed < 2⁶⁴.
        index: of the image.
        purpose: 0: its noise; others are independent of that and of each other, such as 1: its label.
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be in 0..2**64-1, found {seed}")
    # Philox (Salmon et al. 2011): any two keys give independent streams, and so do parts of its counter far apart.
    key, counter = np.array([seed, index], np.uint64), np.array([0, 0, 0, purpose], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


class ImageNoise:
    """Standard normal draws for images `first` .. `first + count − 1` of a seed."""

    def __init__(self, seed: int, count: int, shape: tuple[int, ...], *, first: int = 0, purpose: int = 0) -> None:
        """
        Args:
            seed: 0 ≤ seed < 2⁶⁴.
            count: images in this batch.
            shape: of one image as the network sees it, [C, H, W].
            first: index of the batch's first image in the whole request.
            purpose: as of `stream`.
        """
        self._streams = [stream(seed, first + index, purpose=purpose) for index in range(count)]
        self._shape = shape

    def draw(self) -> NDArray[np.float32]:
        """The next z of every image: first x_T, then one a noisy step. [count, *shape] float32."""
        noise = np.empty((len(self._streams), *self._shape), dtype=np.float32)
        for stream, out in zip(self._streams, noise, strict=True):
            stream.standard_normal(out=out, dtype=np.float32)
        return noise
