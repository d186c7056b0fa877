"""Weights for networks that are not trained: fresh ones answer 0, whatever x, t and condition are."""

from __future__ import annotations

import torch


def awake(network: torch.nn.Module, std: float = 0.2, seed: int = 0) -> torch.nn.Module:
    """All weights drawn anew, with the same seed for all networks, unless another is given."""
    torch.manual_seed(seed)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return network.eval()


def moved(network: torch.nn.Module) -> torch.nn.Module:
    """All weights a little away from where they start."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network.eval()
