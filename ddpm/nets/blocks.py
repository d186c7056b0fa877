"""The blocks the U-Net is made of (Ho et al. 2020, appendix B; Dhariwal & Nichol 2021, §3).

Shapes are [N, C, L] where `dims` is 1, [N, C, H, W] where it is 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SPELT_OUT = 1024  # positions up to which attention may keep its weights: 32 × 32 pixels

Layer = TypeVar("Layer", bound=nn.Conv1d | nn.Conv2d | nn.Linear)
CONVOLUTIONS: dict[int, type[nn.Conv1d] | type[nn.Conv2d]] = {1: nn.Conv1d, 2: nn.Conv2d}


def zero_initialised(layer: Layer) -> Layer:
    """Start a residual branch's last layer at zero, so that the branch begins as the identity."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


@torch.no_grad()
def initialise_by_fans(network: nn.Module) -> None:
    """Draw the weights of convolutions and linear layers anew as Ho et al. 2020's code does (`default_init`).

    They are uniform with variance 1/n, n the mean of a unit's inputs and outputs; biases are 0. Layers that start at
    zero stay there; the code gives them a variance of 1e-10/n.
    """
    for name, module in network.named_modules():
        if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            continue
        # Queries, keys and values are three layers there.
        for weight in module.weight.chunk({"qkv": 3, "token_kv": 2, "kv": 2}.get(name.rpartition(".")[2], 1)):
            if weight.is_meta or weight.any():
                nn.init.xavier_uniform_(weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def residual_sum(x: Tensor, h: Tensor, *, rescale: bool) -> Tensor:
    """x + h, by 1/√2 if asked, which keeps the variance of a sum of two alike (Song et al. 2021b, appendix H)."""
    return (x + h) / math.sqrt(2) if rescale else x + h


def halve(x: Tensor) -> Tensor:
    """Average pooling over 2 positions a side."""
    return F.avg_pool1d(x, 2) if x.ndim == 3 else F.avg_pool2d(x, 2)


def double(x: Tensor) -> Tensor:
    """Nearest neighbour, twice the side."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class GroupNorm(nn.GroupNorm):
    """torch's, but bf16 under autocast on the CPU is normed in float32, as autocast has it on CUDA.

    torch's bf16 kernel for channels last takes three times as long there, casts included.
    """

    def forward(self, x: Tensor) -> Tensor:
        mixed = _is_cpu_bf16(x) and self.weight.dtype == torch.float32
        return super().forward(x.float() if mixed else x)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention: q [N, heads, queries, width], k and v [N, heads, positions, width] → shaped like q.

    `mask` [N, 1, 1, positions] bool says which positions can be attended to; None: all.

    For bf16 on the CPU it is spelt out: there torch's fused kernel takes three times as long as two products, which use
    the processor's bf16 instructions. They keep positions² numbers, so not for many positions.
    """
    if _is_cpu_bf16(q) and k.shape[-2] <= SPELT_OUT:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        return scores.softmax(dim=-1).to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v, mask)


def _is_cpu_bf16(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.bfloat16


@dataclass(frozen=True, kw_only=True)
class Style:
    """What the blocks of one U-Net have in common: they differ in nothing but their channels.

    Attributes:
        dims: 2 for images, 1 for sequences.
        time_width: of the embedding of the timestep; 0: there is none, as in an autoencoder.
        tokens: width of the tokens that every attention attends to as well; 0: there are none.
        heads: of an attention; must divide the channels.
        head_channels: instead of `heads`: so many channels a head.
        attention: `plain`: an `AttentionBlock`; `transformer`: a `SpatialTransformer`.
        transformer_depth: blocks of each `SpatialTransformer`.
        transformer_projection: into and out of it: `conv`, or `linear`, which computes the same.
        groups: of every GroupNorm; must divide the channels.
        norm_epsilon: of every GroupNorm.
        scale_shift: the embedding scales and shifts the second norm of a residual block (AdaGN, Dhariwal & Nichol 2021,
            eq. 3), else it is added before it.
        rescale_residuals: by 1/√2 every sum of a block's input and output.
        resample: `conv`: strided convolution and nearest neighbour + convolution; `plain`: average pooling and nearest
            neighbour; `residual`: residual blocks that do the same (BigGAN, Brock et al. 2019, figure 15).
        downsample_padding: of `conv`: `symmetric`, or `asymmetric`: at each side's end alone, as TensorFlow does.
    """

    dims: int = 2
    time_width: int
    tokens: int = 0
    heads: int = 1
    head_channels: int | None = None
    attention: str = "plain"
    transformer_depth: int = 1
    transformer_projection: str = "conv"
    groups: int = 32
    norm_epsilon: float = 1e-5
    dropout: float = 0.1
    scale_shift: bool = False
    rescale_residuals: bool = False
    resample: str = "conv"
    downsample_padding: str = "symmetric"

    @property
    def conv(self) -> type[nn.Conv1d] | type[nn.Conv2d]:
        """The convolution of such data."""
        return CONVOLUTIONS[self.dims]

    def norm(self, channels: int) -> GroupNorm:
        return GroupNorm(self.groups, channels, self.norm_epsilon)


class ResidualBlock(nn.Module):
    """GroupNorm, SiLU, conv; the time embedding; GroupNorm, SiLU, dropout, conv; plus the input.

    The time embedding is added to what the first conv says, or, as AdaGN, scales and shifts the second norm.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        style: Style,
        resample: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """
        Args:
            resample: what changes the side, of the branch (between its first SiLU and conv) and of the input alike.
        """
        super().__init__()
        conv = style.conv
        self.scale_shift, self.rescale, self.resample = style.scale_shift, style.rescale_residuals, resample
        self.norm1 = style.norm(channels)
        self.conv1 = conv(channels, out_channels, 3, padding=1)
        outputs = 2 * out_channels if style.scale_shift else out_channels
        self.time = nn.Linear(style.time_width, outputs) if style.time_width else None
        self.norm2 = style.norm(out_channels)
        self.dropout = nn.Dropout(style.dropout)
        self.conv2 = zero_initialised(conv(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Identity() if channels == out_channels else conv(channels, out_channels, 1)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """`time` is the activated embedding, [N, time_width]; None where the block is built without."""
        h = F.silu(self.norm1(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self._normed(self.conv1(h), time)
        h = self.conv2(self.dropout(F.silu(h)))
        return residual_sum(self.skip(x), h, rescale=self.rescale)

    def _normed(self, h: Tensor, time: Tensor | None) -> Tensor:
        """The second norm, with what the time embedding adds before it or does to it."""
        if self.time is None:
            return self.norm2(h)
        embedded = self.time(time)
        embedded = embedded.view(*embedded.shape, *[1] * (h.ndim - 2))
        if self.scale_shift:
            scale, shift = embedded.chunk(2, dim=1)
            return self.norm2(h) * (1 + scale) + shift
        return self.norm2(h + embedded)


class AttentionBlock(nn.Module):
    """Self-attention over all positions, residual; `heads` share the channels.

    Tokens of a condition have keys and values of their own, which stand before those of the positions (Nichol et al.
    2022, GLIDE, §2.3).
    """

    def __init__(self, channels: int, style: Style) -> None:
        super().__init__()
        self.heads = channels // style.head_channels if style.head_channels else style.heads
        self.rescale = style.rescale_residuals
        self.norm = style.norm(channels)
        self.qkv = style.conv(channels, 3 * channels, 1)
        self.out = zero_initialised(style.conv(channels, channels, 1))
        self.token_kv = nn.Linear(style.tokens, 2 * channels) if style.tokens else None

    def forward(self, x: Tensor, tokens: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """
        Args:
            x: [N, C, ...].
            tokens: [N, L, D].
            mask: [N, L] bool, which of the tokens are there; None: all.
        """
        n, c, *sides = x.shape
        positions = math.prod(sides)
        # [N, 3C, ...] → three of [N, heads, positions, C/heads].
        q, k, v = self.qkv(self.norm(x)).view(n, 3, self.heads, c // self.heads, positions).transpose(3, 4).unbind(1)
        if tokens is not None:
            k, v = (torch.cat(both, dim=2) for both in zip(self._keys_values(tokens), (k, v), strict=True))
            if mask is not None:
                mask = F.pad(mask, (0, positions), value=True)[:, None, None]
        attended = attend(q, k, v, mask)
        return residual_sum(x, self.out(attended.transpose(2, 3).reshape(n, c, *sides)), rescale=self.rescale)

    def _keys_values(self, tokens: Tensor) -> Iterable[Tensor]:
        """Of the tokens, [N, heads, L, C/heads] each.

        Raises:
            ValueError: the block was built without them.
        """
        if self.token_kv is None:
            raise ValueError("tokens: the network was built without this port")
        n, count = tokens.shape[:2]
        return self.token_kv(tokens).view(n, count, 2, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)


class NoAttention(nn.Identity):
    """What stands where a level has no attention."""

    def forward(self, x: Tensor, tokens: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        return x


class Downsample(nn.Module):
    """Halve the side: a strided convolution, or average pooling."""

    def __init__(self, channels: int, style: Style) -> None:
        super().__init__()
        # Two numbers a side: F.pad's (before, after).
        self.padding = (0, 1) * style.dims if style.downsample_padding == "asymmetric" else None
        learned, padding = style.resample == "conv", 0 if self.padding else 1
        self.conv = style.conv(channels, channels, 3, stride=2, padding=padding) if learned else None

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """`time` is there for the residual blocks that stand in this one's place."""
        if self.conv is None:
            return halve(x)
        return self.conv(F.pad(x, self.padding) if self.padding else x)


class Upsample(nn.Module):
    """Double the side: nearest neighbour, then a convolution if it is to be learned."""

    def __init__(self, channels: int, style: Style) -> None:
        super().__init__()
        self.conv = style.conv(channels, channels, 3, padding=1) if style.resample == "conv" else None

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """`time` is there for the residual blocks that stand in this one's place."""
        x = double(x)
        return x if self.conv is None else self.conv(x)
