"""The configuration of diffusers' `UNet2DModel`, theirs to ours and ours to theirs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ddpm.config import NetworkConfig, validate
from ddpm.data.kinds import ImageKind
from ddpm.errors import UserError

_ATTENDING = {False: ("DownBlock2D", "UpBlock2D"), True: ("AttnDownBlock2D", "AttnUpBlock2D")}
_RESNET_BLOCKS = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")


def network_config(config: Mapping[str, Any], side: int, where: str) -> NetworkConfig:
    """Our configuration of theirs. Their keys' defaults are those of UNet2DModel."""
    _refuse_unsupported(config, where)
    downs, ups = list(config.get("down_block_types", [])), list(config.get("up_block_types", []))
    widths = list(config.get("block_out_channels", []))
    if not len(downs) == len(ups) == len(widths) > 0 or any(c % widths[0] for c in widths):
        raise UserError(
            f"{where}: down_block_types, up_block_types and block_out_channels {widths} must be as many, and the "
            "channels multiples of the first"
        )
    attended, residual = _blocks(config, downs, ups, where)
    padding = config.get("downsample_padding", 1)
    return validate(
        NetworkConfig,
        {
            "width": widths[0],
            "multipliers": [c // widths[0] for c in widths],
            "blocks": config.get("layers_per_block", 2),
            "attention_resolutions": [side // 2**level for level in attended],
            "middle_attention": config.get("add_attention", True),
            "head_channels": config.get("attention_head_dim", 8),
            "groups": config.get("norm_num_groups", 32),
            "norm_epsilon": config.get("norm_eps", 1e-5),
            "dropout": config.get("dropout", 0.0),
            "scale_shift": config.get("resnet_time_scale_shift", "default") == "scale_shift",
            "resample": "residual" if residual else "conv",
            "downsample_padding": "asymmetric" if padding == 0 and not residual else "symmetric",
            "frequency_shift": config.get("freq_shift", 0),
            "num_classes": config.get("num_class_embeds"),
        },
        where,
    )


def _blocks(config: Mapping[str, Any], downs: list[str], ups: list[str], where: str) -> tuple[list[int], bool]:
    """The levels that attend, and whether the ways between levels are residual blocks."""
    pairs = {
        _ATTENDING[False]: ("conv", "conv"),
        _ATTENDING[True]: (config.get("downsample_type", "conv"), config.get("upsample_type", "conv")),
        _RESNET_BLOCKS: ("resnet", "resnet"),
    }
    found = list(zip(downs, reversed(ups), strict=True))
    for level, pair in enumerate(found):
        if pair not in pairs:
            raise UserError(f"{where}: level {level} has {pair[0]} and {pair[1]}, a pair that ddpm does not have")
    ways = {pairs[pair][0] for pair in found[:-1]} | {pairs[pair][1] for pair in found[1:]}
    if ways not in (set(), {"conv"}, {"resnet"}):
        raise UserError(
            f"{where}: it resamples by {' and '.join(sorted(map(str, ways)))}; expected conv or resnet alone"
        )
    return [level for level, pair in enumerate(found) if pair == _ATTENDING[True]], ways == {"resnet"}


def _refuse_unsupported(config: Mapping[str, Any], where: str) -> None:
    """Name the first key whose value ours has no counterpart to."""
    groups = config.get("norm_num_groups", 32)
    scale_shift = config.get("resnet_time_scale_shift", "default") == "scale_shift"
    supported: dict[str, tuple[Any, ...]] = {
        "_class_name": ("UNet2DModel",),
        "act_fn": ("silu", "swish"),
        # Where the time scales and shifts, None leaves the norm of the attention in the middle out.
        "attn_norm_num_groups": (groups,) if scale_shift and config.get("add_attention", True) else (None, groups),
        "center_input_sample": (False,),
        "class_embed_type": (None,),
        "downsample_padding": (0, 1),
        "mid_block_scale_factor": (1,),
        "mid_block_type": ("UNetMidBlock2D",),
        "resnet_time_scale_shift": ("default", "scale_shift"),
        "time_embedding_dim": (None, 4 * next(iter(config.get("block_out_channels", ())), 0)),
        "time_embedding_type": ("positional",),
    }
    required = {"_class_name", "attn_norm_num_groups"}
    for key, values in supported.items():
        if (key in config or key in required) and config.get(key) not in values:
            expected = " or ".join(map(str, dict.fromkeys(values)))
            raise UserError(f"{where}: {key} is {config.get(key)}, which ddpm does not have; expected {expected}")


def their_config(network: NetworkConfig, kind: ImageKind, out_channels: int) -> dict[str, Any]:
    multipliers = list(network.multipliers)
    for key, value, unsupported in (
        ("resample", network.resample, network.resample == "plain"),
        ("rescale_residuals", network.rescale_residuals, network.rescale_residuals),
        ("timestep_scale", network.timestep_scale, network.timestep_scale != 1),
        ("multipliers", multipliers, multipliers[0] != 1),
    ):
        if unsupported:
            raise UserError(f"network.{key} is {value}, which diffusers' UNet2DModel does not have")
    widths = [network.width * multiplier for multiplier in multipliers]
    channels, side, _ = kind.network_shape
    attends = [side // 2**level in network.attention_resolutions for level in range(len(widths))]
    residual = network.resample == "residual"
    plain = _RESNET_BLOCKS if residual else _ATTENDING[False]
    blocks = [_ATTENDING[True] if attending else plain for attending in attends]
    return {
        "_class_name": "UNet2DModel",
        "sample_size": side,
        "in_channels": channels,
        "out_channels": out_channels,
        "down_block_types": [down for down, _ in blocks],
        "up_block_types": [up for _, up in reversed(blocks)],
        "block_out_channels": widths,
        "layers_per_block": network.blocks,
        "add_attention": network.middle_attention,
        "attention_head_dim": _head_channels(network, widths, attends),
        "norm_num_groups": network.groups,
        "attn_norm_num_groups": network.groups,
        "norm_eps": network.norm_epsilon,
        "dropout": network.dropout,
        "act_fn": "silu",
        "resnet_time_scale_shift": "scale_shift" if network.scale_shift else "default",
        "downsample_type": "resnet" if residual else "conv",
        "upsample_type": "resnet" if residual else "conv",
        "downsample_padding": 0 if network.downsample_padding == "asymmetric" else 1,
        "time_embedding_type": "positional",
        "flip_sin_to_cos": False,
        "freq_shift": network.frequency_shift,
        "num_class_embeds": network.num_classes,
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
