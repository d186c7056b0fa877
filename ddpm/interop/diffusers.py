"""Directories of diffusers' `UNet2DModel` and its scheduler, both ways; the package itself is not needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ddpm.config import NetworkConfig, ProcessConfig, SamplingConfig, validate
from ddpm.data.kinds import ImageKind
from ddpm.diffusion.schedules import SCHEDULES, Float64, Schedule
from ddpm.errors import UserError
from ddpm.files import read_json, write_json
from ddpm.interop.published import (
    Published,
    network_of,
    read_saved,
    refuse_other_keys,
    shaped_like,
    swap_halves,
    tensors_alone,
)

WEIGHTS = "diffusion_pytorch_model.safetensors"
PICKLED_WEIGHTS = "diffusion_pytorch_model.bin"
_RESIDUAL = {
    "norm1": "norm1",
    "conv1": "conv1",
    "time": "time_emb_proj",
    "norm2": "norm2",
    "conv2": "conv2",
    "skip": "conv_shortcut",
}
# Theirs are linear layers, and three of them are our one.
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}
_FIXED = {
    "time_mlp.0": "time_embedding.linear_1",
    "time_mlp.2": "time_embedding.linear_2",
    "classes": "class_embedding",
    "stem": "conv_in",
    "out_norm": "conv_norm_out",
    "out_conv": "conv_out",
}
# As attentions were called before diffusers 0.14.
_OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
_ATTENDING = {False: ("DownBlock2D", "UpBlock2D"), True: ("AttnDownBlock2D", "AttnUpBlock2D")}
_RESNET_BLOCKS = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
_PREDICTIONS = {"epsilon": "epsilon", "sample": "x0", "v_prediction": "v"}
_SCHEDULE_NAMES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
_VARIANCES = {
    "fixed_small": "fixed_small",
    "fixed_small_log": "fixed_small",
    "fixed_large": "fixed_large",
    "fixed_large_log": "fixed_large",
    "learned_range": "learned_range",
}
_SAMPLERS: dict[str, tuple[Literal["ancestral", "ddim"], int]] = {
    "DDPMScheduler": ("ancestral", 1000),
    "DDIMScheduler": ("ddim", 50),
}


# --- theirs to ours


def read(directory: Path, image_size: int | None = None) -> Published:
    """A pipeline's directory (`unet/`, `scheduler/`), or a model's own with its scheduler's configuration in it.

    Args:
        image_size: where the model's configuration has no `sample_size`.

    Raises:
        UserError: a file is missing or damaged, or the model uses what ours lacks; the message names the key.
    """
    config = _read_config(_model_folder(directory) / "config.json")
    schedulers = [directory / "scheduler" / "scheduler_config.json", directory / "scheduler_config.json"]
    scheduler = _read_config(next((path for path in schedulers if path.is_file()), schedulers[-1]))
    weights = weights_file(directory)
    return convert(config, scheduler, tensors_alone(read_saved(weights), str(weights)), image_size, str(directory))


def weights_file(directory: Path) -> Path:
    """Where a directory has its weights: as safetensors if they are there, else pickled."""
    folder = _model_folder(directory)
    pickled = folder / PICKLED_WEIGHTS
    return pickled if pickled.is_file() and not (folder / WEIGHTS).is_file() else folder / WEIGHTS


def _model_folder(directory: Path) -> Path:
    return directory / "unet" if (directory / "unet").is_dir() else directory


def convert(
    config: Mapping[str, Any],
    scheduler: Mapping[str, Any],
    theirs: Mapping[str, Tensor],
    image_size: int | None = None,
    where: str = "checkpoint",
) -> Published:
    """The network of a UNet2DModel's configuration and weights, and the process of a scheduler's configuration.

    Raises:
        UserError: as `read`.
    """
    side = config.get("sample_size") or image_size
    if isinstance(side, list | tuple):
        side = side[0] if len(set(side)) == 1 else None
    if not isinstance(side, int):
        raise UserError(f"{where}: sample_size is {config.get('sample_size')}: give --image-size, the side in pixels")
    channels, out_channels = config.get("in_channels", 3), config.get("out_channels", 3)
    network = _network(config, side, where)
    process, sampling = _process(scheduler, where)
    if out_channels != channels * (2 if process.variance == "learned_range" else 1):
        raise UserError(
            f"{where}: {channels} channels in and {out_channels} out do not go with the scheduler's variance_type "
            f"{scheduler.get('variance_type')!r}"
        )
    kind = ImageKind((side, side, channels))
    ours = network_of(network, kind, out_channels, where)
    names = _their_names(network, ours.state_dict())
    theirs = {_new_name(name): tensor for name, tensor in theirs.items()}
    refuse_other_keys(theirs, (part for parts in names.values() for part in parts), where)
    weights = {name: torch.cat([theirs[part] for part in parts]) for name, parts in names.items()}
    if config.get("flip_sin_to_cos", True):
        weights["time_mlp.0.weight"] = swap_halves(weights["time_mlp.0.weight"])
    return Published(network, process, sampling, kind, shaped_like(weights, ours, where))


def _network(config: Mapping[str, Any], side: int, where: str) -> NetworkConfig:
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


def _process(config: Mapping[str, Any], where: str) -> tuple[ProcessConfig, SamplingConfig]:
    """The process and the sampling plan of a scheduler's configuration."""
    name = config.get("_class_name")
    if name not in _SAMPLERS:
        raise UserError(f"{where}: the scheduler is {name}; expected {' or '.join(_SAMPLERS)}")
    supported: dict[str, tuple[Any, ...]] = {
        "rescale_betas_zero_snr": (False,),
        "set_alpha_to_one": (True,),
        "steps_offset": (0,),
        "thresholding": (False,),
        "clip_sample_range": (1,),
        "prediction_type": tuple(_PREDICTIONS),
        "variance_type": tuple(_VARIANCES),
    }
    for key, values in supported.items():
        if config.get(key, values[0]) not in values:
            raise UserError(f"{where}: the scheduler's {key} is {config[key]}, which ddpm does not have")
    timesteps = config.get("num_train_timesteps", 1000)
    process = {
        "timesteps": timesteps,
        "schedule": _schedule(config, timesteps, where),
        "prediction": _PREDICTIONS[config.get("prediction_type", "epsilon")],
        "variance": _VARIANCES[config.get("variance_type", "fixed_small")],
    }
    sampler, steps = _SAMPLERS[name]
    sampling = {
        "sampler": sampler,
        "steps": min(steps, timesteps),
        "spacing": config.get("timestep_spacing", "leading"),
        "clip": config.get("clip_sample", True),
    }
    return validate(ProcessConfig, process, where), validate(SamplingConfig, sampling, where)


def _schedule(config: Mapping[str, Any], timesteps: int, where: str) -> str:
    """The name of the schedule that has the configuration's betas."""
    kind, start, end = (
        config.get("beta_schedule", "linear"),
        config.get("beta_start", 1e-4),
        config.get("beta_end", 0.02),
    )
    betas: Float64
    if config.get("trained_betas") is not None:
        betas = np.asarray(config["trained_betas"], dtype=np.float64)
    elif kind == "linear":
        betas = np.linspace(start, end, timesteps)
    elif kind == "scaled_linear":
        betas = np.linspace(start**0.5, end**0.5, timesteps) ** 2
    elif kind == "squaredcos_cap_v2":
        return "cosine"
    else:
        raise UserError(f"{where}: the scheduler's beta_schedule is {kind}, which ddpm does not have")
    for name in SCHEDULES:
        ours = Schedule.named(name, timesteps).betas
        if betas.shape == ours.shape and np.allclose(betas, ours, rtol=1e-5, atol=0):
            return name
    raise UserError(f"{where}: the scheduler's betas, from {betas[0]} to {betas[-1]}, are of no schedule that ddpm has")


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = read_json(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected a directory as diffusers' save_pretrained writes it") from None
    except ValueError as error:
        raise UserError(f"{path}: damaged: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: expected keys and values, found {type(config).__name__}")
    return config


# --- ours to theirs


def write(published: Published, directory: Path) -> None:
    """Write a directory that `DDPMPipeline.from_pretrained` loads, and its `unet/` alone `UNet2DModel.from_pretrained`.

    Raises:
        UserError: the network uses what UNet2DModel lacks; the message names the key.
    """
    from safetensors.torch import save_file

    unet, scheduler = directory / "unet", directory / "scheduler"
    network, kind = published.network, published.kind
    if not isinstance(network, NetworkConfig) or not isinstance(kind, ImageKind):
        raise UserError(f"diffusers' UNet2DModel is a unet of images; this model is a {network.kind} of {kind.name}")
    config = unet_configuration(network, kind, len(published.weights["out_conv.bias"]))
    weights = {}
    for name, parts in _their_names(network, published.weights).items():
        for part, tensor in zip(parts, published.weights[name].chunk(len(parts)), strict=True):
            linear = ".attentions." in part
            weights[part] = (tensor.flatten(1) if linear and tensor.ndim > 2 else tensor).contiguous()
    for folder in (unet, scheduler):
        folder.mkdir()
    write_json(unet / "config.json", config)
    save_file(weights, unet / WEIGHTS, metadata={"format": "pt"})
    write_json(scheduler / "scheduler_config.json", _their_scheduler(published))
    write_json(
        directory / "model_index.json",
        {
            "_class_name": "DDPMPipeline",
            "scheduler": ["diffusers", "DDPMScheduler"],
            "unet": ["diffusers", "UNet2DModel"],
        },
    )


def unet_configuration(network: NetworkConfig, kind: ImageKind, out_channels: int) -> dict[str, Any]:
    """UNet2DModel's keyword arguments, and its name under `_class_name`.

    Raises:
        UserError: the network uses what UNet2DModel lacks; the message names the key.
    """
    for key, value in {
        "resample": "plain" if network.resample == "plain" else None,
        "rescale_residuals": network.rescale_residuals or None,
        "timestep_scale": network.timestep_scale if network.timestep_scale != 1 else None,
        "multipliers": network.multipliers if network.multipliers[0] != 1 else None,
    }.items():
        if value is not None:
            shown = list(value) if isinstance(value, tuple) else value
            raise UserError(f"network.{key} is {shown}, which diffusers' UNet2DModel does not have")
    widths = [network.width * multiplier for multiplier in network.multipliers]
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


def _their_scheduler(published: Published) -> dict[str, Any]:
    process, sampling = published.process, published.sampling
    betas = Schedule.named(process.schedule, process.timesteps).betas
    # A short linear schedule is held below 1, which its two ends cannot say, and of the sigmoid they have no name.
    named = process.schedule in _SCHEDULE_NAMES and not (process.schedule == "linear" and betas[-1] >= 0.999)
    predictions = {ours: theirs for theirs, ours in _PREDICTIONS.items()}
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": process.timesteps,
        "beta_schedule": _SCHEDULE_NAMES.get(process.schedule, "linear"),
        "beta_start": float(betas[0]),
        "beta_end": float(betas[-1]),
        "trained_betas": None if named else betas.tolist(),
        "variance_type": process.variance,
        "prediction_type": predictions[process.prediction],
        "clip_sample": sampling.clip,
        "timestep_spacing": "leading" if sampling.spacing == "quadratic" else sampling.spacing,
    }


# --- names


def _their_names(network: NetworkConfig, ours: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Our names, each with theirs, whose tensors one after the other are ours."""
    modules = dict(_module_names(network))
    names = {}
    for name in ours:
        module, _, parameter = name.rpartition(".")
        found = (
            [modules[module.removesuffix("qkv") + part] for part in "qkv"]
            if module.endswith(".qkv")
            else [modules[module]]
        )
        names[name] = [f"{their_module}.{parameter}" for their_module in found]
    return names


def _module_names(network: NetworkConfig) -> Iterator[tuple[str, str]]:
    """Our name and theirs of every module that may hold weights."""
    yield from _FIXED.items()
    for way, resamplers in (("down", "downsamplers"), ("up", "upsamplers")):
        resample = _RESIDUAL if network.resample == "residual" else {"conv": "conv"}
        for level in range(len(network.multipliers)):
            there = f"{way}_blocks.{level}"
            for block in range(network.blocks + 1):
                yield from _with(f"{way}.{level}.residuals.{block}", f"{there}.resnets.{block}", _RESIDUAL)
                yield from _with(f"{way}.{level}.attentions.{block}", f"{there}.attentions.{block}", _ATTENTION)
            yield from _with(f"{way}.{level}.resample", f"{there}.{resamplers}.0", resample)
    yield from _with("middle_in", "mid_block.resnets.0", _RESIDUAL)
    yield from _with("middle_attention", "mid_block.attentions.0", _ATTENTION)
    yield from _with("middle_out", "mid_block.resnets.1", _RESIDUAL)


def _with(ours: str, theirs: str, parts: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    return ((f"{ours}.{part}", f"{theirs}.{their_part}") for part, their_part in parts.items())


def _new_name(name: str) -> str:
    for old, new in _OLD_NAMES.items():
        name = name.replace(old, new)
    return name
