"""The multilayer perceptron for points: the smallest network of a complete diffusion model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from ddpm.nets.condition import NOTHING, Condition, Network, Shapes, embedded
from ddpm.nets.embeddings import timestep_embedding


class ResidualLayer(nn.Module):
    """LayerNorm, to which the time adds, SiLU, linear; plus the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.time = nn.Linear(width, width)
        self.linear = nn.Linear(width, width)

    def forward(self, h: Tensor, time: Tensor) -> Tensor:
        return h + self.linear(F.silu(self.norm(h) + self.time(time)))


class MLP(Network):
    """A denoiser of points [N, C]: residual layers of one width."""

    axes = (0,)
    takes = frozenset({"vector"})

    def __init__(self, shapes: Shapes, *, width: int = 128, layers: int = 4, dropout: float = 0.0) -> None:
        """
        Args:
            width: of every layer, even.
            layers: residual ones.

        Raises:
            ValueError: a number does not fit; the message names the key.
        """
        super().__init__()
        if width % 2:
            raise ValueError(f"width must be even, found {width}")
        self.width = self.vector_width = width
        self.time_mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.stem = nn.Linear(shapes.channels, width)
        self.layers = nn.ModuleList(ResidualLayer(width) for _ in range(layers))
        self.dropout = nn.Dropout(dropout)
        self.out_norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, shapes.out_channels or shapes.channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, t: Tensor, c: Condition = NOTHING) -> Tensor:
        """x [N, C] noisy points, t [N] integer timesteps → [N, out_channels]."""
        time = F.silu(embedded(self.time_mlp(timestep_embedding(t, self.width)), c))
        h = self.stem(x)
        for layer in cast("Iterable[nn.Module]", self.layers):
            h = self.dropout(layer(h, time))
        return self.out(F.silu(self.out_norm(h)))
