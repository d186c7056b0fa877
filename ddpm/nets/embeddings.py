"""How a network is told the time."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def timestep_embedding(t: Tensor, width: int, *, max_period: float = 10_000.0) -> Tensor:
    """Sinusoidal embedding of t (Vaswani et al. 2017, §3.5, in the ordering of Ho et al. 2020: sines, then cosines).

    Args:
        t: [N] integers or floats.
        width: even.

    Returns:
        [N, width] float32.
    """
    half = width // 2
    # Ho et al. divide by half − 1, so that the slowest frequency is exactly 1 / max_period.
    exponents = torch.arange(half, dtype=torch.float32, device=t.device) / max(half - 1, 1)
    angles = t.float()[:, None] * torch.exp(-math.log(max_period) * exponents)
    return torch.cat([angles.sin(), angles.cos()], dim=1)
