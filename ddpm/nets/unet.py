"""The U-Net of Ho et al. 2020 (appendix B)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm.nets.blocks import AttentionBlock, Downsample, ResidualBlock, Upsample, zero_initialised
from ddpm.nets.embeddings import timestep_embedding


class Level(nn.Module):
    """The blocks at one resolution, each a residual block and its attention, and the way to the next resolution."""

    def __init__(
        self, residuals: Sequence[nn.Module], attentions: Sequence[nn.Module], resample: nn.Module | None
    ) -> None:
        super().__init__()
        self.residuals = nn.ModuleList(residuals)
        self.attentions = nn.ModuleList(attentions)
        self.resample = resample


class UNet(nn.Module):
    """A denoiser: residual blocks at halving resolutions, attention at some, a skip from every block down to one up.

    With the defaults, at 32×32×3: the paper's CIFAR-10 network of 35.7 M parameters.
    """

    def __init__(
        self,
        image_size: int,
        channels: int,
        *,
        out_channels: int | None = None,
        width: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 2,
        attention_resolutions: Sequence[int] = (16,),
        heads: int = 1,
        groups: int = 32,
        dropout: float = 0.1,
    ) -> None:
        """
        Args:
            image_size: the side in pixels; must halve evenly once a level but the last.
            channels: of the images.
            out_channels: of the output; the images' by default, twice as many where the variance is learned.
            width: channels of the first level, even; a level has width × multiplier.
            blocks: residual blocks a level on the way down, and one more on the way up.
            attention_resolutions: the sides, in pixels, whose blocks are followed by self-attention.
            heads: attention heads; must divide the channels where there is attention.
            groups: of every GroupNorm; must divide every level's channels.

        Raises:
            ValueError: the numbers do not fit together; the message names the key.
        """
        super().__init__()
        sides = level_sides(image_size, len(multipliers))
        widths = [width * multiplier for multiplier in multipliers]
        _check(sides, widths, attention_resolutions, heads, groups)
        self.width = width
        time_width = 4 * width

        def residual(c_in: int, c_out: int) -> ResidualBlock:
            return ResidualBlock(c_in, c_out, time_width, groups=groups, dropout=dropout)

        def attention(c: int, side: int) -> nn.Module:
            return AttentionBlock(c, groups=groups, heads=heads) if side in attention_resolutions else nn.Identity()

        self.time_mlp = nn.Sequential(nn.Linear(width, time_width), nn.SiLU(), nn.Linear(time_width, time_width))
        self.stem = nn.Conv2d(channels, width, 3, padding=1)

        self.down = nn.ModuleList()
        skips, c = [width], width
        for level, (side, c_level) in enumerate(zip(sides, widths, strict=True)):
            residuals, attentions = [], []
            for _ in range(blocks):
                residuals.append(residual(c, c_level))
                attentions.append(attention(c_level, side))
                c = c_level
                skips.append(c)
            last = level == len(sides) - 1
            self.down.append(Level(residuals, attentions, None if last else Downsample(c)))
            if not last:
                skips.append(c)

        self.middle_in = residual(c, c)
        self.middle_attention = AttentionBlock(c, groups=groups, heads=heads)
        self.middle_out = residual(c, c)

        self.up = nn.ModuleList()
        for level, (side, c_level) in reversed(list(enumerate(zip(sides, widths, strict=True)))):
            residuals, attentions = [], []
            for _ in range(blocks + 1):
                residuals.append(residual(c + skips.pop(), c_level))
                attentions.append(attention(c_level, side))
                c = c_level
            self.up.append(Level(residuals, attentions, Upsample(c) if level > 0 else None))

        self.out_norm = nn.GroupNorm(groups, c)
        self.out_conv = zero_initialised(nn.Conv2d(c, out_channels or channels, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x [N, C, H, W] noisy images, t [N] integer timesteps → [N, out_channels, H, W]."""
        time = F.silu(self.time_mlp(timestep_embedding(t, self.width)))
        h = self.stem(x)
        skips = [h]
        for level in cast("Iterable[Level]", self.down):
            for residual, attention in zip(level.residuals, level.attentions, strict=True):
                h = attention(residual(h, time))
                skips.append(h)
            if level.resample is not None:
                h = level.resample(h)
                skips.append(h)
        h = self.middle_out(self.middle_attention(self.middle_in(h, time)), time)
        for level in cast("Iterable[Level]", self.up):
            for residual, attention in zip(level.residuals, level.attentions, strict=True):
                h = attention(residual(torch.cat([h, skips.pop()], dim=1), time))
            if level.resample is not None:
                h = level.resample(h)
        return self.out_conv(F.silu(self.out_norm(h)))


def level_sides(image_size: int, levels: int) -> list[int]:
    """The side at each level.

    Raises:
        ValueError: the side does not halve evenly that often.
    """
    if image_size % 2 ** (levels - 1):
        raise ValueError(
            f"multipliers has {levels} levels, which halve the side {levels - 1} times, but {image_size} is not a "
            f"multiple of {2 ** (levels - 1)}: use fewer multipliers or another data.image_size"
        )
    return [image_size // 2**level for level in range(levels)]


def _check(
    sides: Sequence[int], widths: Sequence[int], attention_resolutions: Sequence[int], heads: int, groups: int
) -> None:
    """Refuse what cannot be built, in the words of the configuration."""
    if widths[0] % 2:
        raise ValueError(f"width must be even, found {widths[0]}")
    if missing := set(attention_resolutions) - set(sides):
        raise ValueError(
            f"attention_resolutions names {sorted(missing)}, "
            f"but the levels are {', '.join(map(str, sides))} pixels a side"
        )
    for c in widths:
        if c % groups:
            raise ValueError(f"groups is {groups}, which does not divide a level's {c} channels (width × multiplier)")
    attended = [c for side, c in zip(sides, widths, strict=True) if side in attention_resolutions] + [widths[-1]]
    for c in attended:
        if c % heads:
            raise ValueError(f"heads is {heads}, which does not divide the {c} channels of an attention")
