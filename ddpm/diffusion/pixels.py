"""Between pixels and what networks see (torch)."""

from __future__ import annotations

import torch
from torch import Tensor


def to_uint8(x: Tensor) -> Tensor:
    """Network images [N, C, H, W] in [−1, 1] → pixels [N, H, W, C] uint8, rounded, values outside clipped."""
    return ((x + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def from_uint8(pixels: Tensor) -> Tensor:
    """Pixels [N, H, W, C] uint8 → network images [N, C, H, W] float32 in [−1, 1], channels last in memory."""
    return pixels.permute(0, 3, 1, 2).to(torch.float32).div_(127.5).sub_(1)
