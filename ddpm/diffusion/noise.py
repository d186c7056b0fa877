"""Noise that belongs to an image, not to a batch (numpy only).

Image i of seed s draws from its own counter-based stream, so it comes out the same in a batch of 1 or of 64, in the
trained model and in the exported one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class ImageNoise:
    """Standard normal draws for images `first` .. `first + count − 1` of a seed."""

    def __init__(self, seed: int, count: int, shape: tuple[int, ...], *, first: int = 0) -> None:
        """
        Args:
            seed: 0 ≤ seed < 2⁶⁴.
            count: images in this batch.
            shape: of one image as the network sees it, [C, H, W].
            first: index of the batch's first image in the whole request.
        """
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed must be in 0..2**64-1, found {seed}")
        # Philox (Salmon et al. 2011): any two keys give independent streams.
        keys = ([seed, first + index] for index in range(count))
        self._streams = [np.random.Generator(np.random.Philox(key=np.array(key, dtype=np.uint64))) for key in keys]
        self._shape = shape

    def draw(self) -> NDArray[np.float32]:
        """The next z of every image: first x_T, then one a noisy step. [count, *shape] float32."""
        noise = np.empty((len(self._streams), *self._shape), dtype=np.float32)
        for stream, out in zip(self._streams, noise, strict=True):
            stream.standard_normal(out=out, dtype=np.float32)
        return noise
