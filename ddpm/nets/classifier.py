"""The classifier of noisy images that guides a diffusion model: the U-Net's way down with attention pooling (Dhariwal &
Nichol 2021, §4, table 12)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm.nets.blocks import attend
from ddpm.nets.condition import NOTHING, Condition, Shapes
from ddpm.nets.unet import Encoder


class AttentionPool(nn.Module):
    """One vector of all positions, by one query: that of their mean (Radford et al. 2021, §2.4)."""

    def __init__(self, channels: int, positions: int, out_channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        # Of the mean, then of every position.
        self.position = nn.Parameter(torch.randn(channels, positions + 1) / channels**0.5)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.out = nn.Conv1d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, ...] → [N, out_channels]."""
        n, c = x.shape[:2]
        x = x.reshape(n, c, -1)
        x = torch.cat([x.mean(dim=2, keepdim=True), x], dim=2) + self.position
        q, k, v = self.qkv(x).reshape(n, 3, self.heads, c // self.heads, -1).transpose(3, 4).unbind(1)
        return self.out(attend(q[:, :, :1], k, v).reshape(n, c, 1)).flatten(1)


class Classifier(Encoder):
    """(x [N, C, ...], t [N]) → logits [N, K]. The defaults are ADM's, for images of 64 pixels and more."""

    takes = frozenset()

    def __init__(
        self,
        shapes: Shapes,
        *,
        width: int = 128,
        multipliers: Sequence[float] = (1, 2, 3, 4),
        head_channels: int = 64,
        **options: Any,
    ) -> None:
        """
        Args:
            shapes: `out_channels` is K, the number of classes; by default 1, for what counts operations or memory.
            options: the others of `Encoder`.

        Raises:
            ValueError: the numbers do not fit together; the message names the key.
        """
        super().__init__(
            shapes,
            width=width,
            stem_width=round(width * multipliers[0]),
            multipliers=multipliers,
            head_channels=head_channels,
            **options,
        )
        bottom = self._levels[-1][0]
        positions = (shapes.side // 2 ** (len(multipliers) - 1)) ** shapes.dims
        self.out_norm = self._style.norm(bottom)
        self.pool = AttentionPool(bottom, positions, shapes.out_channels or 1, bottom // head_channels)

    def forward(self, x: Tensor, t: Tensor, c: Condition = NOTHING) -> Tensor:
        """x [N, C, H, W] noisy images, t [N] integer timesteps → logits [N, K]."""
        h, _, _ = self.encode(x, t, c)
        return self.pool(F.silu(self.out_norm(h)))
