"""Embeddings of the time."""

from __future__ import annotations

import math

import torch
from torch import Tensor


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
