"""Directories of diffusers' `UNet2DModel` and its scheduler, both ways; the package itself is not needed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm.config import NetworkConfig, validate
from ddpm.data.kinds import ImageKind
from ddpm.errors import UserError
from ddpm.files import read_json, write_json
from ddpm.interop.diffusers.names import new_name, their_names
from ddpm.interop.diffusers.scheduler import SchedulerConfig, process_config, their_scheduler
from ddpm.interop.diffusers.unet import UNet2DConfig, network_config, their_config
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
    unet = validate(UNet2DConfig, config, where)
    of_scheduler = f"{where}: scheduler"
    process, sampling = process_config(validate(SchedulerConfig, scheduler, of_scheduler), of_scheduler)
    side, channels, out_channels = unet.sample_size or image_size, unet.in_channels, unet.out_channels
    if side is None:
        raise UserError(f"{where}: it tells no sample_size: give --image-size, the side in pixels")
    network = network_config(unet, side, where)
    if out_channels != channels * (2 if process.variance == "learned_range" else 1):
        raise UserError(
            f"{where}: {channels} channels in and {out_channels} out do not go with a variance that is "
            f"{process.variance}"
        )
    kind = ImageKind((side, side, channels))
    ours = network_of(network, kind, out_channels, where)
    names = their_names(network, ours.state_dict())
    theirs = {new_name(name): tensor for name, tensor in theirs.items()}
    refuse_other_keys(theirs, (part for parts in names.values() for part in parts), where)
    weights = {name: torch.cat([theirs[part] for part in parts]) for name, parts in names.items()}
    if unet.flip_sin_to_cos:
        weights["time_mlp.0.weight"] = swap_halves(weights["time_mlp.0.weight"])
    return Published(network, process, sampling, kind, shaped_like(weights, ours, where))


def write(published: Published, directory: Path) -> None:
    """Write a directory that `DDPMPipeline.from_pretrained` loads, and its `unet/` alone `UNet2DModel.from_pretrained`.

    Raises:
        UserError: the network uses what UNet2DModel lacks, or the sampling what DDPMScheduler does; the message names
            the key.
    """
    from safetensors.torch import save_file

    unet, scheduler = directory / "unet", directory / "scheduler"
    network, kind = published.network, published.kind
    if not isinstance(network, NetworkConfig) or not isinstance(kind, ImageKind):
        raise UserError(f"diffusers' UNet2DModel is a unet of images; this model is a {network.kind} of {kind.name}")
    config = their_config(network, kind, len(published.weights["out_conv.bias"]))
    scheduling = their_scheduler(published.process, published.sampling)
    weights = {}
    for name, parts in their_names(network, published.weights).items():
        for part, tensor in zip(parts, published.weights[name].chunk(len(parts)), strict=True):
            linear = ".attentions." in part
            weights[part] = (tensor.flatten(1) if linear and tensor.ndim > 2 else tensor).contiguous()
    for folder in (unet, scheduler):
        folder.mkdir()
    write_json(unet / "config.json", config)
    save_file(weights, unet / WEIGHTS, metadata={"format": "pt"})
    write_json(scheduler / "scheduler_config.json", scheduling)
    write_json(
        directory / "model_index.json",
        {
            "_class_name": "DDPMPipeline",
            "scheduler": ["diffusers", "DDPMScheduler"],
            "unet": ["diffusers", "UNet2DModel"],
        },
    )


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
