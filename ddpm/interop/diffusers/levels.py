"""What the configurations of diffusers' U-Nets have in common, theirs to ours and ours to theirs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from pydantic import BaseModel, Field, field_validator, model_validator

from ddpm.config.base import Positive
from ddpm.config.network import NetworkConfig
from ddpm.errors import UserError

Pair = tuple[str, str]  # the names of a level's blocks, on the way down and on the way up

PLAIN: Pair = ("DownBlock2D", "UpBlock2D")
# What no U-Net of theirs has: keys of `network`, and the only value that can be exported.
_ALWAYS = {
    "rescale_residuals": False,
    "timestep_scale": 1.0,
    "time_embedding": "sinusoidal",
    "input_range": "symmetric",
}


class Blocks(BaseModel, frozen=True):
    """What says the levels of any network of theirs."""

    class_name: str = Field(alias="_class_name")
    down_block_types: tuple[str, ...]
    up_block_types: tuple[str, ...]
    block_out_channels: tuple[Positive, ...]

    @model_validator(mode="after")
    def _levels_are_told_alike(self) -> Self:
        widths = self.block_out_channels
        alike = len(self.down_block_types) == len(self.up_block_types) == len(widths) > 0
        if not alike or any(c % widths[0] for c in widths):
            raise ValueError(
                f"down_block_types, up_block_types and block_out_channels {list(widths)} must be as many, and the "
                "channels multiples of the first"
            )
        return self


class Levels(Blocks, frozen=True):
    """What the configurations of their U-Nets have in common."""

    sample_size: Positive | None = None

    @field_validator("sample_size", mode="before")
    @classmethod
    def _a_square_has_one_side(cls, value: Any) -> Any:
        sides = value if isinstance(value, list | tuple) else ()
        return sides[0] if len(sides) == 2 and sides[0] == sides[1] else value

    @property
    def pairs(self) -> list[Pair]:
        """Of each level."""
        return list(zip(self.down_block_types, reversed(self.up_block_types), strict=True))

    def refuse_other_pairs(self, known: Sequence[Pair], where: str) -> None:
        """
        Raises:
            UserError: a level has blocks that ours lacks.
        """
        for level, pair in enumerate(self.pairs):
            if pair not in known:
                raise UserError(f"{where}: level {level} has {pair[0]} and {pair[1]}, a pair that ddpm does not have")


def in_common(theirs: Any, side: int, attended: Sequence[int]) -> dict[str, Any]:
    """The keys of our `network` that both of their configurations say alike.

    Args:
        theirs: `Levels` with the other keys of either.
        side: of x.
        attended: the levels with attention, from 0.
    """
    first = theirs.block_out_channels[0]
    return {
        "width": first,
        "multipliers": [c // first for c in theirs.block_out_channels],
        "blocks": theirs.layers_per_block,
        "attention_resolutions": [side // 2**level for level in attended],
        "groups": theirs.norm_num_groups,
        "norm_epsilon": theirs.norm_eps,
        "dropout": theirs.dropout,
        "scale_shift": theirs.resnet_time_scale_shift == "scale_shift",
        "frequency_shift": theirs.freq_shift,
    }


def refuse_unsupported(network: NetworkConfig, class_name: str, **only: Any) -> None:
    """
    Args:
        only: more keys of `network`, with the only value that their class has.

    Raises:
        UserError: the network uses what their class lacks; the message names the key.
    """
    for key, value in (only | _ALWAYS).items():
        if (found := getattr(network, key)) != value:
            raise UserError(f"network.{key} is {found}, which diffusers' {class_name} does not have")
    if network.multipliers[0] != 1:
        found = list(network.multipliers)
        raise UserError(f"network.multipliers is {found}, which diffusers' {class_name} does not have")


def widths_of(network: NetworkConfig) -> list[int]:
    """Channels of each level."""
    return [network.width * multiplier for multiplier in network.multipliers]


def attends(network: NetworkConfig, side: int) -> list[bool]:
    """Which levels have attention."""
    return [side // 2**level in network.attention_resolutions for level in range(len(network.multipliers))]


def their_levels(
    network: NetworkConfig, class_name: str, x: tuple[int, ...], out_channels: int, pairs: Sequence[Pair]
) -> dict[str, Any]:
    """The keys of their config.json that both classes have alike.

    Args:
        x: the shape of a datum, (C, H, W).
        pairs: of each level.
    """
    channels, side, *_ = x
    return {
        "_class_name": class_name,
        "sample_size": side,
        "in_channels": channels,
        "out_channels": out_channels,
        "down_block_types": [down for down, _ in pairs],
        "up_block_types": [up for _, up in reversed(pairs)],
        "block_out_channels": widths_of(network),
        "layers_per_block": network.blocks,
        "norm_num_groups": network.groups,
        "norm_eps": network.norm_epsilon,
        "dropout": network.dropout,
        "act_fn": "silu",
        "resnet_time_scale_shift": "scale_shift" if network.scale_shift else "default",
        "downsample_padding": 0 if network.downsample_padding == "asymmetric" else 1,
        "flip_sin_to_cos": False,
        "freq_shift": network.frequency_shift,
    }
