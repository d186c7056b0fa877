"""diffusers' `AutoencoderKL`, theirs to ours and ours to theirs: its configuration and the names of its tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ddpm.config.base import Positive, validate
from ddpm.config.network import AutoencoderConfig
from ddpm.interop.diffusers.levels import Blocks
from ddpm.interop.diffusers.names import new_name
from ddpm.interop.published import fused_names, parts_of, refuse_other_keys, shaped_like
from ddpm.nets.autoencoder import AutoencoderKL
from ddpm.nets.condition import Shapes

SCALE = 0.18215  # of Stable Diffusion's latents, and theirs by default
_RESIDUAL = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "skip": "conv_shortcut"}
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}


class AutoencoderKLConfig(Blocks, frozen=True):
    """What decides the network in their config.json, with AutoencoderKL's defaults and as far as ours has a
    counterpart; other keys are passed over."""

    class_name: Literal["AutoencoderKL"] = Field(alias="_class_name")
    in_channels: Literal[1, 3] = 3
    out_channels: Literal[1, 3] = 3
    down_block_types: tuple[Literal["DownEncoderBlock2D"], ...]
    up_block_types: tuple[Literal["UpDecoderBlock2D"], ...]
    layers_per_block: Positive = 1
    act_fn: Literal["silu", "swish"] = "silu"
    latent_channels: Positive = 4
    norm_num_groups: Positive = 32
    sample_size: Positive = 32
    scaling_factor: Annotated[float, Field(gt=0)] = SCALE
    shift_factor: Literal[0] | None = None
    latents_mean: None = None
    latents_std: None = None
    use_quant_conv: Literal[True] = True
    use_post_quant_conv: Literal[True] = True
    mid_block_add_attention: bool = True

    @model_validator(mode="after")
    def _pictures_come_back_as_they_were(self) -> AutoencoderKLConfig:
        if self.in_channels != self.out_channels:
            raise ValueError(
                f"in_channels is {self.in_channels} and out_channels {self.out_channels}; expected as many"
            )
        return self


def autoencoder_config(theirs: AutoencoderKLConfig, where: str) -> AutoencoderConfig:
    """Our configuration of theirs.

    Args:
        where: what errors call it.
    """
    first = theirs.block_out_channels[0]
    return validate(
        AutoencoderConfig,
        {
            "kind": "autoencoder",
            "width": first,
            "multipliers": [c // first for c in theirs.block_out_channels],
            "blocks": theirs.layers_per_block,
            "latent_channels": theirs.latent_channels,
            "middle_attention": theirs.mid_block_add_attention,
            "groups": theirs.norm_num_groups,
        },
        where,
    )


def their_autoencoder_config(network: AutoencoderConfig, channels: int, side: int, scale: float) -> dict[str, Any]:
    """Their config.json of our configuration.

    Args:
        scale: what latents are multiplied by.
    """
    levels = len(network.multipliers)
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": channels,
        "out_channels": channels,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": [network.width * multiplier for multiplier in network.multipliers],
        "layers_per_block": network.blocks,
        "act_fn": "silu",
        "latent_channels": network.latent_channels,
        "norm_num_groups": network.groups,
        "sample_size": side,
        "scaling_factor": scale,
        "mid_block_add_attention": network.middle_attention,
    }


def read_autoencoder(
    config: Mapping[str, Any], theirs: Mapping[str, Tensor], where: str
) -> tuple[AutoencoderConfig, AutoencoderKLConfig, dict[str, Tensor]]:
    """Our configuration, theirs (which has the scale and the side too), and the weights under our names.

    Raises:
        UserError: it uses what ours lacks, or weights are missing, of another shape, or too many.
    """
    found = validate(AutoencoderKLConfig, config, where)
    ours = autoencoder_config(found, where)
    options = ours.model_dump(exclude={"kind"})
    with torch.device("meta"):
        # The weights are the same for every side; this one halves evenly.
        side = 2 ** len(ours.multipliers)
        network = AutoencoderKL(Shapes((found.in_channels, side, side)), **options)
    names = their_autoencoder_names(ours, network.state_dict())
    theirs = {new_name(name): tensor for name, tensor in theirs.items()}
    refuse_other_keys(theirs, (part for parts in names.values() for part in parts), where)
    weights = {name: torch.cat([theirs[part] for part in parts]) for name, parts in names.items()}
    return ours, found, shaped_like(weights, network, where)


def their_autoencoder_weights(network: AutoencoderConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights under their names and in their shapes: their attentions are linear layers."""
    theirs = {}
    for name, parts in their_autoencoder_names(network, weights).items():
        for part, tensor in zip(parts, weights[name].chunk(len(parts)), strict=True):
            linear = ".attentions." in part and tensor.ndim > 2
            theirs[part] = (tensor.flatten(1) if linear else tensor).contiguous()
    return theirs


def their_autoencoder_names(network: AutoencoderConfig, ours: Iterable[str]) -> dict[str, list[str]]:
    """Our names, each with theirs, whose tensors one after the other are ours."""
    return fused_names(ours, dict(_module_names(network)))


def _module_names(network: AutoencoderConfig) -> Iterator[tuple[str, str]]:
    """Our name and theirs of every module that may hold weights."""
    yield "to_moments", "quant_conv"
    yield "from_latent", "post_quant_conv"
    ends = {"stem": "conv_in", "out_norm": "conv_norm_out", "out_conv": "conv_out"}
    for half, way, resamplers in (("encoder", "down", "downsamplers"), ("decoder", "up", "upsamplers")):
        yield from parts_of(half, half, ends)
        for level in range(len(network.multipliers)):
            ours, theirs = f"{half}.{way}.{level}", f"{half}.{way}_blocks.{level}"
            for block in range(network.blocks + 1):
                yield from parts_of(f"{ours}.residuals.{block}", f"{theirs}.resnets.{block}", _RESIDUAL)
            yield f"{ours}.resample.conv", f"{theirs}.{resamplers}.0.conv"
        for number, name in enumerate(("residual_in", "residual_out")):
            yield from parts_of(f"{half}.middle.{name}", f"{half}.mid_block.resnets.{number}", _RESIDUAL)
        yield from parts_of(f"{half}.middle.attention", f"{half}.mid_block.attentions.0", _ATTENTION)
