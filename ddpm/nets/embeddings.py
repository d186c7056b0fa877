"""Embeddings of the time, or of the noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn


def timestep_embedding(t: Tensor, width: int, *, max_period: float = 10_000.0, frequency_shift: int = 1) -> Tensor:
    """Sinusoidal embedding of t (Vaswani et al. 2017, §3.5, in the ordering of Ho et al. 2020: sines, then cosines).

    Args:
        t: [N] integers or floats.
        width: even.
        frequency_shift: 1 as in Ho et al.'s code: the slowest frequency is 1 / max_period; 0 as in Nichol & Dhariwal's:
            it is the one before.

    Returns:
        [N, width] float32.
    """
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=t.device) / max(half - frequency_shift, 1)
    angles = t.float()[:, None] * torch.exp(-math.log(max_period) * exponents)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class GaussianFourier(nn.Module):
    """Random Fourier features of the logarithm of what it is given, such as σ (Tancik et al. 2020; Song et al. 2021,
    NCSN++, appendix H): sines, then cosines of 2π w ln t, with frequencies w drawn once and never trained.
    """

    weight: Tensor

    def __init__(self, width: int, *, scale: float = 16.0) -> None:
        """
        Args:
            width: frequencies.
            scale: standard deviation of the frequencies.
        """
        super().__init__()
        self.register_buffer("weight", torch.randn(width) * scale)

    def forward(self, t: Tensor) -> Tensor:
        """t [N], above 0 → [N, 2 width] float32."""
        angles = t.float().log()[:, None] * self.weight * (2 * math.pi)
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class TimeEmbedding(NamedTuple):
    """A way to embed the time.

    Attributes:
        make: (width, frequency_shift) → t [N] → [N, features × width].
        features: how many times the width.
    """

    make: Callable[[int, int], Callable[[Tensor], Tensor]]
    features: int


TIME_EMBEDDINGS: dict[str, TimeEmbedding] = {
    "sinusoidal": TimeEmbedding(
        lambda width, shift: partial(timestep_embedding, width=width, frequency_shift=shift),
        1,
    ),
    "fourier": TimeEmbedding(lambda width, shift: GaussianFourier(width), 2),
}
