"""The one U-Net: Ho et al. 2020 (appendix B), and by its options improved DDPM's (Nichol & Dhariwal 2021) and ADM's
(Dhariwal & Nichol 2021, §3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ddpm.nets.blocks import (
    CONVOLUTIONS,
    AttentionBlock,
    Downsample,
    GroupNorm,
    NoAttention,
    ResidualBlock,
    Upsample,
    double,
    halve,
    initialise_by_fans,
    zero_initialised,
)
from ddpm.nets.condition import NOTHING, Condition, Network, embedded
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


class Encoder(Network):
    """The U-Net's way down and its bottom: what `UNet` and `nets.classifier.Classifier` share."""

    axes = (1, 2)
    takes = frozenset({"vector", "tokens", "maps"})

    def __init__(
        self,
        image_size: int,
        channels: int,
        *,
        dims: int = 2,
        width: int = 128,
        stem_width: int | None = None,
        multipliers: Sequence[float] = (1, 2, 2, 2),
        blocks: int = 2,
        attention_resolutions: Sequence[int] = (16,),
        middle_attention: bool = True,
        heads: int = 1,
        head_channels: int | None = None,
        groups: int = 32,
        norm_epsilon: float = 1e-5,
        dropout: float = 0.1,
        scale_shift: bool = False,
        resample: str = "conv",
        downsample_padding: str = "symmetric",
        rescale_residuals: bool = False,
        frequency_shift: int = 1,
        timestep_scale: float = 1.0,
        checkpointing: bool = False,
        tokens: int = 0,
        maps: int = 0,
    ) -> None:
        """
        Args:
            image_size: the side in pixels, or a sequence's length; must halve evenly once a level but the last.
            channels: of the images.
            dims: 2 for images [N, C, H, W], 1 for sequences [N, C, L].
            width: the timestep is embedded in this many numbers, even; a level has width × multiplier channels.
            stem_width: channels of the first convolution; `width` by default.
            blocks: residual blocks a level on the way down.
            attention_resolutions: the sides, in pixels, whose blocks are followed by self-attention.
            middle_attention: self-attention between the two blocks at the bottom too.
            heads: attention heads; must divide the channels where there is attention.
            head_channels: instead of `heads`: so many channels a head.
            groups: of every GroupNorm; must divide every level's channels.
            norm_epsilon: of every GroupNorm.
            scale_shift: the time embedding scales and shifts the second norm of every block (AdaGN), else it is added.
            resample: `conv`: strided convolution and nearest neighbour + convolution; `plain`: average pooling and
                nearest neighbour; `residual`: residual blocks that do the same (BigGAN).
            downsample_padding: of `conv`: `symmetric`, or `asymmetric`: at each side's end alone, as TensorFlow does.
            rescale_residuals: by 1/√2 every sum of a block's input and output.
            frequency_shift: of the timestep embedding: 1 Ho et al.'s, 0 Nichol & Dhariwal's.
            timestep_scale: what t is multiplied by before it is embedded.
            checkpointing: compute blocks anew in the backward pass instead of keeping what they computed.
            tokens: width of the port `tokens`; 0: the network has no such port.
            maps: of the port `maps`, how many; 0: the network has no such port.

        Raises:
            ValueError: the numbers do not fit together; the message names the key.
        """
        super().__init__()
        stem_width = stem_width or width
        sides = level_sides(image_size, len(multipliers))
        widths = [round(width * multiplier) for multiplier in multipliers]
        _check_channels(width, [stem_width, *widths], groups)
        _check_attention(sides, widths, attention_resolutions, middle_attention, heads, head_channels)
        if tokens and not attention_resolutions and not middle_attention:
            raise ValueError("attention_resolutions is empty and middle_attention false, so nothing attends to tokens")
        self.width, self.checkpointing = width, checkpointing
        self.frequency_shift, self.timestep_scale = frequency_shift, timestep_scale
        self.vector_width = time_width = 4 * width
        self._parts = parts = _Parts(
            dims=dims,
            time_width=time_width,
            groups=groups,
            epsilon=norm_epsilon,
            dropout=dropout,
            scale_shift=scale_shift,
            rescale=rescale_residuals,
            heads=heads,
            head_channels=head_channels,
            resample=resample,
            downsample_padding=downsample_padding,
            tokens=tokens,
        )
        self._levels = [(c, side in attention_resolutions) for side, c in zip(sides, widths, strict=True)]

        self.time_mlp = nn.Sequential(nn.Linear(width, time_width), nn.SiLU(), nn.Linear(time_width, time_width))
        self.stem = CONVOLUTIONS[dims](channels, stem_width, 3, padding=1)
        self.down, self._skips = _way_down(parts, stem_width, self._levels, blocks)
        self.middle_in = parts.residual(widths[-1], widths[-1])
        self.middle_attention = parts.attention(widths[-1], middle_attention)
        self.middle_out = parts.residual(widths[-1], widths[-1])
        # A convolution of x and the maps together is the sum of one of each. So the weights for x have the same name
        # and shape with maps and without.
        self.stem_maps = CONVOLUTIONS[dims](maps, stem_width, 3, padding=1, bias=False) if maps else None

    def encode(self, x: Tensor, t: Tensor, c: Condition) -> tuple[Tensor, Tensor, list[Tensor]]:
        """x [N, C, H, W], t [N] → the bottom [N, width × last multiplier, …], the embedding [N, 4 width] that blocks
        take, and the skips from the first to the last.

        Raises:
            ValueError: the condition has maps or tokens, and the network was built without.
        """
        if self.timestep_scale != 1:
            t = t * self.timestep_scale
        time = self.time_mlp(timestep_embedding(t, self.width, frequency_shift=self.frequency_shift))
        time = F.silu(embedded(time, c))
        h = self.stem(x)
        if c.maps is not None:
            if self.stem_maps is None:
                raise ValueError("maps: the network was built without this port")
            h = h + self.stem_maps(c.maps)
        skips = [h]
        for level in cast("Iterable[Level]", self.down):
            for residual, attention in zip(level.residuals, level.attentions, strict=True):
                h = self._run(residual, attention, h, time, c)
                skips.append(h)
            if level.resample is not None:
                h = level.resample(h, time)
                skips.append(h)
        h = self._run(self.middle_in, self.middle_attention, h, time, c)
        return self.middle_out(h, time), time, skips

    def _run(self, residual: nn.Module, attention: nn.Module, h: Tensor, time: Tensor, c: Condition) -> Tensor:
        """A residual block and its attention."""

        def run(h: Tensor, time: Tensor) -> Tensor:
            return attention(residual(h, time), c.tokens, c.mask)

        if self.checkpointing and torch.is_grad_enabled():
            return cast("Tensor", checkpoint(run, h, time, use_reentrant=False))
        return run(h, time)


class UNet(Encoder):
    """A denoiser: residual blocks at halving resolutions, attention at some, a skip from every block down to one up.

    With the defaults, at 32×32×3: the paper's CIFAR-10 network of 35.7 M parameters.
    """

    takes = Encoder.takes | {"residuals"}

    def __init__(
        self,
        image_size: int,
        channels: int,
        *,
        out_channels: int | None = None,
        dims: int = 2,
        blocks: int = 2,
        groups: int = 32,
        norm_epsilon: float = 1e-5,
        init: str = "torch",
        **options: Any,
    ) -> None:
        """
        Args:
            out_channels: of the output; the images' by default, twice as many where the variance is learned.
            blocks: residual blocks a level on the way down, and one more on the way up.
            init: `torch`: its defaults; `fan_avg`: as Ho et al.'s code (`blocks.initialise_by_fans`).
            options: the others of `Encoder`.

        Raises:
            ValueError: the numbers do not fit together; the message names the key.
        """
        super().__init__(
            image_size, channels, dims=dims, blocks=blocks, groups=groups, norm_epsilon=norm_epsilon, **options
        )
        self.up = _way_up(self._parts, list(self._skips), self._levels, blocks)
        first = self._levels[0][0]
        self.out_norm = GroupNorm(groups, first, norm_epsilon)
        self.out_conv = zero_initialised(CONVOLUTIONS[dims](first, out_channels or channels, 3, padding=1))
        if init == "fan_avg":
            initialise_by_fans(self)

    def forward(self, x: Tensor, t: Tensor, c: Condition = NOTHING) -> Tensor:
        """x [N, C, H, W] noisy images, t [N] integer timesteps → [N, out_channels, H, W].

        Raises:
            ValueError: the condition has what the network was built without, or another number of residuals than there
                are skips and the bottom.
        """
        h, time, skips = self.encode(x, t, c)
        if c.residuals:
            if len(c.residuals) != len(skips) + 1:
                raise ValueError(f"residuals: expected {len(skips)} and one of the bottom, found {len(c.residuals)}")
            *skips, h = (a + b for a, b in zip([*skips, h], c.residuals, strict=True))
        for level in cast("Iterable[Level]", self.up):
            for residual, attention in zip(level.residuals, level.attentions, strict=True):
                h = self._run(residual, attention, torch.cat([h, skips.pop()], dim=1), time, c)
            if level.resample is not None:
                h = level.resample(h, time)
        return self.out_conv(F.silu(self.out_norm(h)))


@dataclass(frozen=True)
class _Parts:
    """Makes the parts of one network, which differ by nothing but their channels."""

    dims: int
    time_width: int
    groups: int
    epsilon: float
    dropout: float
    scale_shift: bool
    rescale: bool
    heads: int
    head_channels: int | None
    resample: str
    downsample_padding: str
    tokens: int

    def residual(self, c_in: int, c_out: int, resample: Callable[[Tensor], Tensor] | None = None) -> nn.Module:
        return ResidualBlock(
            c_in,
            c_out,
            self.time_width,
            groups=self.groups,
            dropout=self.dropout,
            dims=self.dims,
            epsilon=self.epsilon,
            scale_shift=self.scale_shift,
            rescale=self.rescale,
            resample=resample,
        )

    def attention(self, c: int, wanted: bool) -> nn.Module:
        if not wanted:
            return NoAttention()
        return AttentionBlock(
            c,
            groups=self.groups,
            heads=c // self.head_channels if self.head_channels else self.heads,
            dims=self.dims,
            epsilon=self.epsilon,
            rescale=self.rescale,
            tokens=self.tokens,
        )

    def downsample(self, c: int) -> nn.Module:
        if self.resample == "residual":
            return self.residual(c, c, halve)
        return Downsample(c, dims=self.dims, learned=self.resample == "conv", padding=self.downsample_padding)

    def upsample(self, c: int) -> nn.Module:
        if self.resample == "residual":
            return self.residual(c, c, double)
        return Upsample(c, dims=self.dims, learned=self.resample == "conv")


# The order in which modules are made is the order in which they draw their initial weights.


def _way_down(
    parts: _Parts, c: int, levels: Sequence[tuple[int, bool]], blocks: int
) -> tuple[nn.ModuleList, list[int]]:
    """The levels on the way down, and the channels of every skip.

    Args:
        c: channels of the stem.
        levels: the channels of each, and whether it attends.
    """
    way, skips = nn.ModuleList(), [c]
    for number, (c_level, attends) in enumerate(levels):
        residuals, attentions = [], []
        for _ in range(blocks):
            residuals.append(parts.residual(c, c_level))
            attentions.append(parts.attention(c_level, attends))
            c = c_level
            skips.append(c)
        last = number == len(levels) - 1
        way.append(Level(residuals, attentions, None if last else parts.downsample(c)))
        if not last:
            skips.append(c)
    return way, skips


def _way_up(parts: _Parts, skips: list[int], levels: Sequence[tuple[int, bool]], blocks: int) -> nn.ModuleList:
    """The levels on the way up, whose blocks take up the skips from the last to the first."""
    way, c = nn.ModuleList(), levels[-1][0]
    for number, (c_level, attends) in reversed(list(enumerate(levels))):
        residuals, attentions = [], []
        for _ in range(blocks + 1):
            residuals.append(parts.residual(c + skips.pop(), c_level))
            attentions.append(parts.attention(c_level, attends))
            c = c_level
        way.append(Level(residuals, attentions, parts.upsample(c) if number > 0 else None))
    return way


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


def _check_channels(width: int, widths: Sequence[int], groups: int) -> None:
    """Refuse channels that cannot be built, in the words of the configuration."""
    if width % 2:
        raise ValueError(f"width must be even, found {width}")
    for c in [width, *widths]:
        if c % groups:
            raise ValueError(f"groups is {groups}, which does not divide a level's {c} channels (width × multiplier)")


def _check_attention(
    sides: Sequence[int],
    widths: Sequence[int],
    attention_resolutions: Sequence[int],
    middle_attention: bool,
    heads: int,
    head_channels: int | None,
) -> None:
    """Refuse attention that cannot be built, in the words of the configuration."""
    if missing := set(attention_resolutions) - set(sides):
        raise ValueError(
            f"attention_resolutions names {sorted(missing)}, "
            f"but the levels are {', '.join(map(str, sides))} pixels a side"
        )
    if head_channels and heads != 1:
        raise ValueError(f"heads is {heads} and head_channels is {head_channels}: give one of them")
    key, value = ("head_channels", head_channels) if head_channels else ("heads", heads)
    attended = [c for side, c in zip(sides, widths, strict=True) if side in attention_resolutions]
    for c in attended + ([widths[-1]] if middle_attention else []):
        if c % value:
            raise ValueError(f"{key} is {value}, which does not divide the {c} channels of an attention")
