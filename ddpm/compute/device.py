"""Which device and which arithmetic."""

from __future__ import annotations

import torch


def pick_device() -> torch.device:
    """CUDA when there, else the CPU; CUDA_VISIBLE_DEVICES chooses among several."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve_precision(asked: str, device: torch.device) -> str:
    """`auto`: bf16 on a GPU that has it, else fp32; anything else as asked."""
    if asked != "auto":
        return asked
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
