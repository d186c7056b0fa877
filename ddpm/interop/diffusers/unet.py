"""The configuration of diffusers' `UNet2DModel`, theirs to ours and ours to theirs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ddpm.codecs.scale import PixelCodec
from ddpm.config.base import Fraction, Positive, validate
from ddpm.config.network import NetworkConfig
from ddpm.errors import UserError
from ddpm.interop.diffusers.levels import (
    PLAIN,
    Levels,
    attends,
    in_common,
    refuse_unsupported,
    their_levels,
    widths_of,
)

CLASS = "UNet2DModel"
_ATTENDING = ("AttnDownBlock2D", "AttnUpBlock2D")
_RESIDUAL = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")


class UNet2DConfig(Levels, frozen=True):
    """What decides the network in their config.json, with UNet2DModel's defaults and as far as ours has a counterpart;
    other keys are passed over."""

    class_name: Literal["UNet2DModel"] = Field(alias="_class_name")
    in_channels: Literal[1, 3] = 3
    out_channels: Positive = 3
    layers_per_block: Positive = 2
    mid_block_type: Literal["UNetMidBlock2D"] = "UNetMidBlock2D"
    mid_block_scale_factor: Annotated[float, Field(ge=1, le=1)] = 1
    add_attention: bool = True
    attention_head_dim: Positive | None = 8
    norm_num_groups: Positive = 32
    attn_norm_num_groups: int | None = None
    norm_eps: Fraction = 1e-5
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    act_fn: Literal["silu", "swish"] = "silu"
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "default"
    downsample_type: Literal["conv", "resnet"] = "conv"
    upsample_type: Literal["conv", "resnet"] = "conv"
    downsample_padding: Literal[0, 1] = 1
    center_input_sample: bool = False
    time_embedding_type: Literal["positional", "fourier"] = "positional"
    time_embedding_dim: int | None = None
    flip_sin_to_cos: bool = True
    freq_shift: Literal[0, 1] = 0
    class_embed_type: None = None
    num_class_embeds: Positive | None = None

    @model_validator(mode="after")
    def _ours_has_a_counterpart(self) -> UNet2DConfig:
        groups, scale_shift = self.norm_num_groups, self.resnet_time_scale_shift == "scale_shift"
        supported: dict[str, tuple[int | None, ...]] = {
            # Where the time scales and shifts, None leaves the norm of the attention in the middle out.
            "attn_norm_num_groups": (groups,) if scale_shift and self.add_attention else (None, groups),
            "time_embedding_dim": (None, 4 * self.block_out_channels[0]),
        }
        for key, values in supported.items():
            if (found := getattr(self, key)) not in values:
                expected = " or ".join(map(str, values))
                raise ValueError(f"{key} is {found}, which ddpm does not have; expected {expected}")
        return self


def network_config(theirs: UNet2DConfig, side: int, where: str, *, scores: bool = False) -> NetworkConfig:
    """Our configuration of theirs.

    Args:
        side: of the images, in pixels.
        where: what errors call it.
        scores: whether it is a score model of data in [0, 1], whose x and σ are half of ours. Its output, which it
            divides by σ, is σ times the score in both.

    Raises:
        UserError: it is of blocks that ours lacks, or its time embedding or range are of the other kind of model.
    """
    _refuse_other_ranges(theirs, where, scores)
    attended, residual = _blocks(theirs, where)
    return validate(
        NetworkConfig,
        in_common(theirs, side, attended)
        | {
            "middle_attention": theirs.add_attention,
            "head_channels": theirs.attention_head_dim,
            "resample": "residual" if residual else "conv",
            "downsample_padding": "asymmetric" if theirs.downsample_padding == 0 and not residual else "symmetric",
            "timestep_scale": 0.5 if scores else 1.0,
            "time_embedding": "fourier" if scores else "sinusoidal",
            "input_range": "unit" if scores and not theirs.center_input_sample else "symmetric",
        },
        where,
    )


def _refuse_other_ranges(theirs: UNet2DConfig, where: str, scores: bool) -> None:
    expected = "fourier" if scores else "positional"
    if theirs.time_embedding_type != expected:
        whose = "ScoreSdeVeScheduler" if scores else "a scheduler other than ScoreSdeVeScheduler"
        raise UserError(
            f"{where}: time_embedding_type is {theirs.time_embedding_type}, which ddpm does not have with {whose}; "
            f"expected {expected}"
        )
    if theirs.center_input_sample and not scores:
        raise UserError(f"{where}: center_input_sample is True, which ddpm has with ScoreSdeVeScheduler alone")


def _blocks(theirs: UNet2DConfig, where: str) -> tuple[list[int], bool]:
    """The levels that attend, and whether the ways between levels are residual blocks."""
    ways_of = {
        PLAIN: ("conv", "conv"),
        _ATTENDING: (theirs.downsample_type, theirs.upsample_type),
        _RESIDUAL: ("resnet", "resnet"),
    }
    theirs.refuse_other_pairs(list(ways_of), where)
    pairs = theirs.pairs
    ways = {ways_of[pair][0] for pair in pairs[:-1]} | {ways_of[pair][1] for pair in pairs[1:]}
    if len(ways) > 1:
        raise UserError(f"{where}: it resamples by {' and '.join(sorted(ways))}; expected conv or resnet alone")
    return [level for level, pair in enumerate(pairs) if pair == _ATTENDING], ways == {"resnet"}


def their_config(
    network: NetworkConfig, codec: PixelCodec, out_channels: int, num_classes: int | None
) -> dict[str, Any]:
    """Their config.json of our configuration.

    Raises:
        UserError: the network uses what UNet2DModel lacks; the message names the key.
    """
    if network.resample == "plain":
        raise UserError(f"network.resample is plain, which diffusers' {CLASS} does not have")
    refuse_unsupported(network, CLASS)
    attending = attends(network, codec.network_shape[1])
    residual = network.resample == "residual"
    pairs = [_ATTENDING if attend else _RESIDUAL if residual else PLAIN for attend in attending]
    return their_levels(network, CLASS, codec.network_shape, out_channels, pairs) | {
        "add_attention": network.middle_attention,
        "attention_head_dim": _head_channels(network, widths_of(network), attending),
        "attn_norm_num_groups": network.groups,
        "downsample_type": "resnet" if residual else "conv",
        "upsample_type": "resnet" if residual else "conv",
        "time_embedding_type": "positional",
        "num_class_embeds": num_classes,
    }


def _head_channels(network: NetworkConfig, widths: list[int], attends: list[bool]) -> int | None:
    """Theirs are heads by channels; None is one head."""
    if network.head_channels or network.heads == 1:
        return network.head_channels
    attended = {c for c, attending in zip(widths, attends, strict=True) if attending}
    if network.middle_attention:
        attended.add(widths[-1])
    if len(attended) > 1:
        raise UserError(
            f"network.heads is {network.heads} at {sorted(attended)} channels alike, but diffusers' UNet2DModel has "
            "equal channels a head: only networks with head_channels, or one head, can be exported"
        )
    return next(iter(attended), network.heads) // network.heads
