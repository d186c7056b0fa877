"""The one U-Net: Ho et al. 2020 (appendix B), and by its options improved DDPM's (Nichol & Dhariwal 2021), ADM's
(Dhariwal & Nichol 2021, §3) and latent diffusion's (Rombach et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ddpm.nets.blocks import (
    AttentionBlock,
    Downsample,
    NoAttention,
    ResidualBlock,
    Style,
    Upsample,
    double,
    halve,
    initialise_by_fans,
    zero_initialised,
)
from ddpm.nets.condition import NOTHING, Condition, Network, Shapes, embedded
from ddpm.nets.embeddings import TIME_EMBEDDINGS
from ddpm.nets.spatial_transformer import SpatialTransformer

ATTENTIONS: dict[str, Callable[[int, Style], nn.Module]] = {"plain": AttentionBlock, "transformer": SpatialTransformer}


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
        shapes: Shapes,
        *,
        width: int = 128,
        stem_width: int | None = None,
        multipliers: Sequence[float] = (1, 2, 2, 2),
        blocks: int = 2,
        attention_resolutions: Sequence[int] = (16,),
        middle_attention: bool = True,
        frequency_shift: int = 1,
        timestep_scale: float = 1.0,
        time_embedding: str = "sinusoidal",
        input_range: str = "symmetric",
        checkpointing: bool = False,
        **style: Any,
    ) -> None:
        """
        Args:
            shapes: the side must halve evenly once a level but the last.
            width: the timestep is embedded in this many numbers, even; a level has width × multiplier channels.
            stem_width: channels of the first convolution; `width` by default.
            blocks: residual blocks a level on the way down.
            attention_resolutions: the sides, in pixels, whose blocks are followed by self-attention.
            middle_attention: self-attention between the two blocks at the bottom too.
            frequency_shift: of the timestep embedding: 1 Ho et al.'s, 0 Nichol & Dhariwal's.
            timestep_scale: what t is multiplied by before it is embedded.
            time_embedding: one of `embeddings.TIME_EMBEDDINGS`; `fourier` is of t above 0.
            input_range: `symmetric`: the first convolution sees x; `unit`: (x + 1)/2, which is in [0, 1] if x is data.
            checkpointing: compute blocks anew in the backward pass instead of keeping what they computed.
            style: of the blocks: the options of `Style`.

        Raises:
            ValueError: the numbers do not fit together; the message names the key.
        """
        super().__init__()
        tokens, maps = shapes.ports.tokens, shapes.ports.maps
        stem_width = stem_width or width
        self.width, self.checkpointing = width, checkpointing
        self.timestep_scale, self.input_range = timestep_scale, input_range
        self.vector_width = time_width = 4 * width
        self._style = Style(dims=shapes.dims, time_width=time_width, tokens=tokens, **style)
        sides = level_sides(shapes.side, len(multipliers))
        widths = [round(width * multiplier) for multiplier in multipliers]
        _check_channels(width, [stem_width, *widths], self._style.groups)
        _check_attention(sides, widths, attention_resolutions, middle_attention, self._style)
        if tokens and not attention_resolutions and not middle_attention:
            raise ValueError("attention_resolutions is empty and middle_attention false, so nothing attends to tokens")
        self._levels = [(c, side in attention_resolutions) for side, c in zip(sides, widths, strict=True)]

        embedding = TIME_EMBEDDINGS[time_embedding]
        self.time_embedding = embedding.make(width, frequency_shift)
        features = width * embedding.features
        self.time_mlp = nn.Sequential(nn.Linear(features, time_width), nn.SiLU(), nn.Linear(time_width, time_width))
        self.stem = self._style.conv(shapes.channels, stem_width, 3, padding=1)
        self.down, self._skips = _way_down(self._style, stem_width, self._levels, blocks)
        self.middle_in = ResidualBlock(widths[-1], widths[-1], self._style)
        self.middle_attention = _attention(widths[-1], self._style, middle_attention)
        self.middle_out = ResidualBlock(widths[-1], widths[-1], self._style)
        # A convolution of x and the maps together is the sum of one of each. So the weights for x have the same name
        # and shape with maps and without.
        self.stem_maps = self._style.conv(maps, stem_width, 3, padding=1, bias=False) if maps else None

    def encode(
        self, x: Tensor, t: Tensor, c: Condition, added: Tensor | None = None
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """x [N, C, H, W], t [N] → the bottom [N, width × last multiplier, …], the embedding [N, 4 width] that blocks
        take, and the skips from the first to the last.

        Args:
            added: to what the first convolution makes of x, [N, stem_width, H, W].

        Raises:
            ValueError: the condition has maps or tokens, and the network was built without.
        """
        if self.timestep_scale != 1:
            t = t * self.timestep_scale
        time = self.time_mlp(self.time_embedding(t))
        time = F.silu(embedded(time, c))
        h = self.stem((x + 1) / 2 if self.input_range == "unit" else x)
        if c.maps is not None:
            if self.stem_maps is None:
                raise ValueError("maps: the network was built without this port")
            h = h + self.stem_maps(c.maps)
        if added is not None:
            h = h + added
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

    def __init__(self, shapes: Shapes, *, blocks: int = 2, init: str = "torch", **options: Any) -> None:
        """
        Args:
            blocks: residual blocks a level on the way down, and one more on the way up.
            init: `torch`: its defaults; `fan_avg`: as Ho et al.'s code (`blocks.initialise_by_fans`).
            options: the others of `Encoder`.

        Raises:
            ValueError: the numbers do not fit together; the message names the key.
        """
        super().__init__(shapes, blocks=blocks, **options)
        self.up = _way_up(self._style, list(self._skips), self._levels, blocks)
        first = self._levels[0][0]
        self.out_norm = self._style.norm(first)
        out_channels = shapes.out_channels or shapes.channels
        self.out_conv = zero_initialised(self._style.conv(first, out_channels, 3, padding=1))
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


def _attention(c: int, style: Style, wanted: bool) -> nn.Module:
    return ATTENTIONS[style.attention](c, style) if wanted else NoAttention()


def _downsample(c: int, style: Style) -> nn.Module:
    return ResidualBlock(c, c, style, halve) if style.resample == "residual" else Downsample(c, style)


def _upsample(c: int, style: Style) -> nn.Module:
    return ResidualBlock(c, c, style, double) if style.resample == "residual" else Upsample(c, style)


# The order in which modules are made is the order in which they draw their initial weights.


def _way_down(style: Style, c: int, levels: Sequence[tuple[int, bool]], blocks: int) -> tuple[nn.ModuleList, list[int]]:
    """The levels on the way down, and the channels of every skip.

    Args:
        c: channels of the stem.
        levels: the channels of each, and whether it attends.
    """
    way, skips = nn.ModuleList(), [c]
    for number, (c_level, attends) in enumerate(levels):
        residuals, attentions = [], []
        for _ in range(blocks):
            residuals.append(ResidualBlock(c, c_level, style))
            attentions.append(_attention(c_level, style, attends))
            c = c_level
            skips.append(c)
        last = number == len(levels) - 1
        way.append(Level(residuals, attentions, None if last else _downsample(c, style)))
        if not last:
            skips.append(c)
    return way, skips


def _way_up(style: Style, skips: list[int], levels: Sequence[tuple[int, bool]], blocks: int) -> nn.ModuleList:
    """The levels on the way up, whose blocks take up the skips from the last to the first."""
    way, c = nn.ModuleList(), levels[-1][0]
    for number, (c_level, attends) in reversed(list(enumerate(levels))):
        residuals, attentions = [], []
        for _ in range(blocks + 1):
            residuals.append(ResidualBlock(c + skips.pop(), c_level, style))
            attentions.append(_attention(c_level, style, attends))
            c = c_level
        way.append(Level(residuals, attentions, _upsample(c, style) if number > 0 else None))
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
    check_groups([width, *widths], groups)


def check_groups(widths: Sequence[int], groups: int) -> None:
    """Refuse channels that cannot be normed in so many groups, in the words of the configuration."""
    for c in widths:
        if c % groups:
            raise ValueError(f"groups is {groups}, which does not divide a level's {c} channels (width × multiplier)")


def _check_attention(
    sides: Sequence[int],
    widths: Sequence[int],
    attention_resolutions: Sequence[int],
    middle_attention: bool,
    style: Style,
) -> None:
    """Refuse attention that cannot be built, in the words of the configuration."""
    if missing := set(attention_resolutions) - set(sides):
        raise ValueError(
            f"attention_resolutions names {sorted(missing)}, "
            f"but the levels are {', '.join(map(str, sides))} pixels a side"
        )
    heads, head_channels = style.heads, style.head_channels
    if head_channels and heads != 1:
        raise ValueError(f"heads is {heads} and head_channels is {head_channels}: give one of them")
    key, value = ("head_channels", head_channels) if head_channels else ("heads", heads)
    attended = [c for side, c in zip(sides, widths, strict=True) if side in attention_resolutions]
    for c in attended + ([widths[-1]] if middle_attention else []):
        if c % value:
            raise ValueError(f"{key} is {value}, which does not divide the {c} channels of an attention")
