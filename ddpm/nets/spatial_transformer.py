"""The spatial transformer of latent diffusion: attention of an image's positions to each other and to tokens (Rombach
et al. 2022, appendix E.2.1)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from ddpm.nets.blocks import GroupNorm, Style, attend, residual_sum, zero_initialised

NORM_EPSILON = 1e-6  # of the GroupNorm before the transformer, whatever that of the network is


class CrossAttention(nn.Module):
    """softmax(Q Kᵀ / √d) V: queries from x, keys and values from a context; d is the channels of a head.

    Queries, keys and values have no bias.
    """

    def __init__(self, channels: int, context: int, heads: int) -> None:
        """
        Args:
            channels: of x; `heads` must divide them.
            context: width of the context; that of x for self-attention.
        """
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(channels, channels, bias=False)
        self.kv = nn.Linear(context, 2 * channels, bias=False)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """
        Args:
            x: [N, positions, C].
            context: [N, L, D].
            mask: [N, L] bool, which of the context is there; None: all.

        Returns:
            [N, positions, C].
        """
        k, v = self.kv(context).chunk(2, dim=2)
        q, k, v = (each.unflatten(2, (self.heads, -1)).transpose(1, 2) for each in (self.q(x), k, v))
        attended = attend(q, k, v, None if mask is None else mask[:, None, None])
        return self.out(attended.transpose(1, 2).flatten(2))


class GatedFeedForward(nn.Module):
    """Two layers with GEGLU, h · GELU(gate), of four times the channels in between (Shazeer 2020, eq. 5)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.into = nn.Linear(channels, 8 * channels)
        self.out = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., C] → [..., C]."""
        h, gate = self.into(x).chunk(2, dim=-1)
        return self.out(h * F.gelu(gate))


class TransformerBlock(nn.Module):
    """Self-attention, attention to the context, and the gated layers, each after a LayerNorm and plus its input."""

    def __init__(self, channels: int, context: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attention1 = CrossAttention(channels, channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.attention2 = CrossAttention(channels, context or channels, heads)
        self.norm3 = nn.LayerNorm(channels)
        self.feed_forward = GatedFeedForward(channels)

    def forward(self, x: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        """x [N, positions, C] → the same. Without a context the second attention is to x as well."""
        h = self.norm1(x)
        x = x + self.attention1(h, h)
        h = self.norm2(x)
        x = x + self.attention2(h, h if context is None else context, mask)
        return x + self.feed_forward(self.norm3(x))


class LinearProjection(nn.Linear):
    """A convolution of kernel size 1 with the weights of a linear layer, as Stable Diffusion 2 has it."""

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, ...] → [N, C', ...]."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class SpatialTransformer(nn.Module):
    """A GroupNorm, a projection, transformer blocks over all positions, and a projection that starts at zero; residual.

    It stands in the place of `blocks.AttentionBlock`.
    """

    def __init__(self, channels: int, style: Style) -> None:
        super().__init__()
        self.rescale, self.tokens = style.rescale_residuals, style.tokens
        heads = channels // style.head_channels if style.head_channels else style.heads
        linear = style.transformer_projection == "linear"
        projection = LinearProjection if linear else partial(style.conv, kernel_size=1)
        self.norm = GroupNorm(style.groups, channels, NORM_EPSILON)
        self.into = projection(channels, channels)
        self.blocks = nn.ModuleList(
            TransformerBlock(channels, style.tokens, heads) for _ in range(style.transformer_depth)
        )
        self.out = zero_initialised(projection(channels, channels))

    def forward(self, x: Tensor, tokens: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """
        Args:
            x: [N, C, ...].
            tokens: [N, L, D], if the network was built with them.
            mask: [N, L] bool, which of the tokens are there; None: all.

        Raises:
            ValueError: there are tokens, and the network was built without, or the other way round.
        """
        if (tokens is None) != (self.tokens == 0):
            built = "with" if self.tokens else "without"
            raise ValueError(f"tokens: the network was built {built} this port")
        h = self.into(self.norm(x)).flatten(2).transpose(1, 2)
        for block in cast("Iterable[TransformerBlock]", self.blocks):
            h = block(h, tokens, mask)
        h = h.transpose(1, 2).unflatten(2, x.shape[2:])
        return residual_sum(x, self.out(h), rescale=self.rescale)
