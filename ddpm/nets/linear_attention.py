"""The U-Net with linear attention (Wang's implementation of Ho et al. 2020; Shen et al. 2021), in 1-D and 2-D.

Shapes are [N, C, ...] with one axis for sequences and two for images. With its own defaults it is the 1-D network of
the package denoising_diffusion_pytorch; `downsample="unshuffle"`, `memory=4` and full attention at the deepest level
make it that package's 2-D one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm.nets.blocks import CONVOLUTIONS, attend, double
from ddpm.nets.condition import NOTHING, Condition, Network, Shapes, embedded
from ddpm.nets.embeddings import timestep_embedding
from ddpm.nets.unet import level_sides


class ChannelNorm(nn.Module):
    """Root-mean-square norm over the channels of each position (Zhang & Sennrich 2019), with a gain a channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        gain = (self.gain * self.gain.numel() ** 0.5).view(-1, *[1] * (x.ndim - 2))
        return F.normalize(x, dim=1) * gain


class ResNetBlock(nn.Module):
    """Twice conv, norm, SiLU; the time scales and shifts after the first norm; plus the input."""

    def __init__(self, channels: int, out_channels: int, time_width: int, *, dims: int, dropout: float) -> None:
        super().__init__()
        conv = CONVOLUTIONS[dims]
        self.time = nn.Linear(time_width, 2 * out_channels)
        self.conv1 = conv(channels, out_channels, 3, padding=1)
        self.norm1 = ChannelNorm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv(out_channels, out_channels, 3, padding=1)
        self.norm2 = ChannelNorm(out_channels)
        self.skip = nn.Identity() if channels == out_channels else conv(channels, out_channels, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """`time` is the activated embedding, [N, time_width]."""
        scale, shift = self.time(time).view(x.shape[0], -1, *[1] * (x.ndim - 2)).chunk(2, dim=1)
        h = self.dropout(F.silu(self.norm1(self.conv1(x)) * (scale + 1) + shift))
        return F.silu(self.norm2(self.conv2(h))) + self.skip(x)


class _Attention(nn.Module):
    """What both kinds of attention share: norm, queries, keys and values of all positions, and learned ones beside."""

    def __init__(self, channels: int, *, dims: int, heads: int, head_width: int, memory: int) -> None:
        """
        Args:
            memory: learned keys and values that every position also attends to.
        """
        super().__init__()
        conv, inner = CONVOLUTIONS[dims], heads * head_width
        self.heads = heads
        self.norm = ChannelNorm(channels)
        self.qkv = conv(channels, 3 * inner, 1, bias=False)
        self.memory = nn.Parameter(torch.randn(2, heads, head_width, memory)) if memory else None
        self.out = conv(inner, channels, 1)

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each [N, heads, head_width, positions]; keys and values have the memory's positions before the input's."""
        q, k, v = self.qkv(self.norm(x)).flatten(2).unflatten(1, (3, self.heads, -1)).unbind(1)
        if self.memory is not None:
            memory = self.memory.expand(x.shape[0], *self.memory.shape)
            k, v = torch.cat([memory[:, 0], k], dim=-1), torch.cat([memory[:, 1], v], dim=-1)
        return q, k, v


class LinearAttention(_Attention):
    """Attention whose cost is linear in the number of positions, residual (Shen et al. 2021, §3).

    Q is softmaxed over its features, K over the positions, so that KᵀV is computed first, once for all queries.
    """

    def __init__(self, channels: int, *, dims: int, heads: int, head_width: int, memory: int) -> None:
        super().__init__(channels, dims=dims, heads=heads, head_width=head_width, memory=memory)
        self.out_norm = ChannelNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.queries_keys_values(x)
        q = q.softmax(dim=-2) * q.shape[-2] ** -0.5
        context = k.softmax(dim=-1) @ v.transpose(-1, -2)  # [N, heads, features of k, features of v]
        attended = context.transpose(-1, -2) @ q
        return x + self.out_norm(self.out(attended.flatten(1, 2).unflatten(2, x.shape[2:])))


class FullAttention(_Attention):
    """Softmax attention between all positions, residual."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (each.transpose(-1, -2) for each in self.queries_keys_values(x))
        attended = attend(q, k, v).transpose(-1, -2)
        return x + self.out(attended.flatten(1, 2).unflatten(2, x.shape[2:]))


class Unshuffle(nn.Module):
    """Halve the side by moving each 2×2 square into the channels, then mix them."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4 * channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pixel_unshuffle(x, 2))


class Double(nn.Module):
    """Double the side: nearest neighbour, then a convolution."""

    def __init__(self, channels: int, out_channels: int, *, dims: int) -> None:
        super().__init__()
        self.conv = CONVOLUTIONS[dims](channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(double(x))


class Stage(nn.Module):
    """One level: two residual blocks, attention, and the way to the next level."""

    def __init__(self, block1: nn.Module, block2: nn.Module, attention: nn.Module, resample: nn.Module) -> None:
        super().__init__()
        self.block1, self.block2, self.attention, self.resample = block1, block2, attention, resample


class LinearAttentionUNet(Network):
    """A denoiser: two residual blocks and an attention at every resolution, full attention in the middle.

    Both blocks of a level down have a skip to the block that mirrors them on the way up, and so has the first
    convolution, of kernel 7, to the last block.
    """

    axes = (1, 2)
    takes = frozenset({"vector"})

    def __init__(
        self,
        shapes: Shapes,
        *,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2, 4, 8),
        heads: int = 4,
        head_width: int = 32,
        memory: int = 0,
        full_attention: Sequence[int] = (),
        downsample: str = "conv",
        dropout: float = 0.0,
        vector: str = "add",
    ) -> None:
        """
        Args:
            shapes: the side must halve evenly once a level but the last.
            width: channels of the first convolution, even and at least 4; a level has width × multiplier.
            heads, head_width: of every attention; their product need not be the level's channels.
            memory: learned keys and values in every attention.
            full_attention: the levels, from 0, whose attention is not linear.
            downsample: `conv` (kernel 4, stride 2) or, of images, `unshuffle` (2×2 squares into the channels).
            vector: how the port `vector` joins the embedding of the timestep: `add`, or `concatenate`, so that every
                block has weights for both; it must then be given.

        Raises:
            ValueError: the numbers do not fit together; the message names the key.
        """
        super().__init__()
        dims = shapes.dims
        level_sides(shapes.side, len(multipliers))
        _check(dims, width, len(multipliers), full_attention, downsample)
        self.width = width
        conv = CONVOLUTIONS[dims]
        widths = [width, *(width * multiplier for multiplier in multipliers)]
        levels = list(enumerate(itertools.pairwise(widths)))
        last, time_width = len(levels) - 1, 4 * width
        self.vector_width = time_width
        self.concatenates = vector == "concatenate"
        told_width = 2 * time_width if self.concatenates else time_width

        def residual(c_in: int, c_out: int) -> ResNetBlock:
            return ResNetBlock(c_in, c_out, told_width, dims=dims, dropout=dropout)

        def attention(c: int, *, full: bool) -> nn.Module:
            kind = FullAttention if full else LinearAttention
            return kind(c, dims=dims, heads=heads, head_width=head_width, memory=memory)

        def down(c_in: int, c_out: int) -> nn.Module:
            return Unshuffle(c_in, c_out) if downsample == "unshuffle" else conv(c_in, c_out, 4, stride=2, padding=1)

        def same(c_in: int, c_out: int) -> nn.Module:
            return conv(c_in, c_out, 3, padding=1)

        self.time_mlp = nn.Sequential(nn.Linear(width, time_width), nn.GELU(), nn.Linear(time_width, time_width))
        self.stem = conv(shapes.channels, width, 7, padding=3)
        self.down = nn.ModuleList(
            Stage(
                residual(c_in, c_in),
                residual(c_in, c_in),
                attention(c_in, full=level in full_attention),
                same(c_in, c_out) if level == last else down(c_in, c_out),
            )
            for level, (c_in, c_out) in levels
        )
        self.middle_in = residual(widths[-1], widths[-1])
        self.middle_attention = attention(widths[-1], full=True)
        self.middle_out = residual(widths[-1], widths[-1])
        self.up = nn.ModuleList(
            Stage(
                residual(c_out + c_in, c_out),
                residual(c_out + c_in, c_out),
                attention(c_out, full=level in full_attention),
                same(c_out, c_in) if level == 0 else Double(c_out, c_in, dims=dims),
            )
            for level, (c_in, c_out) in reversed(levels)
        )
        self.out_block = residual(2 * width, width)
        self.out_conv = conv(width, shapes.out_channels or shapes.channels, 1)

    def forward(self, x: Tensor, t: Tensor, c: Condition = NOTHING) -> Tensor:
        """x [N, C, ...] noisy data, t [N] integer timesteps → [N, out_channels, ...].

        Raises:
            ValueError: what is to be concatenated is not given.
        """
        time = self.time_mlp(timestep_embedding(t, self.width))
        if not self.concatenates:
            time = embedded(time, c)
        elif c.vector is None:
            raise ValueError("vector: concatenate needs a condition, found none")
        else:
            time = torch.cat([time, c.vector], dim=1)
        time = F.silu(time)
        h = stem = self.stem(x)
        skips = []
        for stage in cast("Iterable[Stage]", self.down):
            h = stage.block1(h, time)
            skips.append(h)
            h = stage.attention(stage.block2(h, time))
            skips.append(h)
            h = stage.resample(h)
        h = self.middle_out(self.middle_attention(self.middle_in(h, time)), time)
        for stage in cast("Iterable[Stage]", self.up):
            h = stage.block1(torch.cat([h, skips.pop()], dim=1), time)
            h = stage.block2(torch.cat([h, skips.pop()], dim=1), time)
            h = stage.resample(stage.attention(h))
        return self.out_conv(self.out_block(torch.cat([h, stem], dim=1), time))


def _check(dims: int, width: int, levels: int, full_attention: Sequence[int], downsample: str) -> None:
    """Refuse what cannot be built, in the words of the configuration."""
    if width % 2 or width < 4:
        raise ValueError(f"width must be even and at least 4, found {width}")
    if downsample == "unshuffle" and dims != 2:
        raise ValueError("downsample: unshuffle is for images; sequences have `conv`")
    if beyond := sorted(level for level in full_attention if not 0 <= level < levels):
        raise ValueError(f"full_attention names {beyond}, but the levels are 0 to {levels - 1}")
