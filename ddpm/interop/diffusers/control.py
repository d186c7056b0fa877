"""diffusers' `ControlNetModel` as a control of ours: its configuration and the names of its tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from ddpm.config.base import Positive, validate
from ddpm.config.network import NetworkConfig
from ddpm.interop.diffusers.names import new_name, their_names
from ddpm.interop.diffusers.unet_condition import CLASS, UNet2DConditionConfig, network_config
from ddpm.interop.published import refuse_other_keys, shaped_like, swap_halves
from ddpm.nets.condition import HintPort, Ports, Shapes
from ddpm.nets.controlled import Control

SHRINK = 8  # of the hint to the latents
_HINT, _TIME = "controlnet_cond_embedding", "time_mlp.0.weight"


class ControlNetConfig(BaseModel, frozen=True):
    """What decides the control in their config.json, beside what it has in common with the U-Net, with
    ControlNetModel's defaults."""

    class_name: Literal["ControlNetModel"] = Field(alias="_class_name")
    in_channels: Positive = 4
    conditioning_channels: Positive = 3
    controlnet_conditioning_channel_order: Literal["rgb", "bgr"] = "rgb"
    conditioning_embedding_out_channels: tuple[Positive, ...] = (16, 32, 96, 256)
    global_pool_conditions: Literal[False] = False
    cross_attention_dim: Positive = 1280
    flip_sin_to_cos: bool = True
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)


class Found(NamedTuple):
    """A control of theirs."""

    network: NetworkConfig
    """Of the U-Net that it controls."""
    hint: HintPort
    weights: dict[str, Tensor]
    """By the names of `Control`."""


def convert(config: Mapping[str, Any], weights: Mapping[str, Tensor], side: int, where: str) -> Found:
    """Their control as ours.

    Args:
        config: their config.json.
        weights: by the names of any of their versions.
        side: of x, in pixels or in latents.
        where: what errors call it.

    Raises:
        UserError: it uses what ours lacks, or names are missing or too many, or a shape differs.
    """
    theirs = validate(ControlNetConfig, dict(config), where)
    ups = tuple(name.replace("Down", "Up") for name in reversed(theirs.down_block_types))
    of_unet = {"down_block_types": theirs.down_block_types, **config, "_class_name": CLASS, "up_block_types": ups}
    network = network_config(validate(UNet2DConditionConfig, of_unet, where), side, where)
    widths = theirs.conditioning_embedding_out_channels
    hint = HintPort(theirs.conditioning_channels, widths, min(SHRINK, 1 << len(widths) - 1))
    options = network.model_dump(exclude={"kind"})
    with torch.device("meta"):
        shapes = Shapes((theirs.in_channels, side, side), ports=Ports(tokens=theirs.cross_attention_dim))
        ours = Control(shapes, hint, **options)
    names = _names(network, ours.state_dict())
    weights = {new_name(name): tensor for name, tensor in weights.items()}
    refuse_other_keys(weights, [part for parts in names.values() for part in parts], where)
    found = {name: torch.cat([weights[part] for part in parts]) for name, parts in names.items()}
    if theirs.flip_sin_to_cos:
        found[_TIME] = swap_halves(found[_TIME])
    if theirs.controlnet_conditioning_channel_order == "bgr":
        found["hint.layers.0.weight"] = found["hint.layers.0.weight"].flip(1)
    return Found(network, hint, shaped_like(found, ours, where))


def for_one_channel(found: Found) -> Found:
    """The same control of hints with one channel, which theirs has thrice: of edges and silhouettes."""
    first = "hint.layers.0.weight"
    summed = found.weights[first].sum(1, keepdim=True)
    return Found(found.network, found.hint._replace(channels=1), {**found.weights, first: summed})


def _names(network: NetworkConfig, ours: Iterable[str]) -> dict[str, list[str]]:
    """Our names, each with theirs."""
    own = [name for name in ours if name.startswith(("hint.", "zero."))]
    last = max(int(name.split(".")[1]) for name in own if name.startswith("zero."))
    names = {}
    for name in own:
        module, _, parameter = name.rpartition(".")
        names[name] = [f"{_module(module, last)}.{parameter}"]
    return their_names(network, [name for name in ours if name not in names]) | names


def _module(ours: str, last: int) -> str:
    """
    Args:
        last: the number of the convolution of the bottom.
    """
    kind, *number = ours.split(".")
    if kind == "zero":
        return "controlnet_mid_block" if int(number[0]) == last else f"controlnet_down_blocks.{number[0]}"
    if number == ["out"]:
        return f"{_HINT}.conv_out"
    place = int(number[1])
    return f"{_HINT}.blocks.{place - 1}" if place else f"{_HINT}.conv_in"
