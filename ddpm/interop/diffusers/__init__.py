"""Directories of diffusers' `UNet2DModel` and its scheduler, both ways; the package itself is not needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ddpm.codecs.scale import PixelCodec
from ddpm.config.base import validate
from ddpm.config.network import NetworkConfig
from ddpm.config.process import ProcessConfig
from ddpm.config.sampling import SamplingConfig
from ddpm.errors import UserError
from ddpm.files import write_json
from ddpm.interop.diffusers.continuous import CONTINUOUS
from ddpm.interop.diffusers.scheduler import SchedulerConfig, process_config, their_scheduler
from ddpm.interop.diffusers.unet import UNet2DConfig, network_config, their_config
from ddpm.interop.diffusers.weights import ours_of, theirs_of
from ddpm.interop.folders import DIFFUSERS, read_config, read_weights, weights_in
from ddpm.interop.published import Flags, Published, classes_of, network_of

WEIGHTS, SCHEDULER = "diffusion_pytorch_model.safetensors", "scheduler_config.json"
CLASSES = "class_embedding.weight"
MODEL_FOLDERS = ("unet_ema", "unet")  # in a pipeline's directory, and in a checkpoint of their training example


@dataclass(frozen=True)
class Found:
    """Where a directory has what makes a model: the folder of the network, the files of its weights, the scheduler's
    configuration."""

    folder: Path
    weights: tuple[Path, ...]
    scheduler: Path | None


def find(directory: Path) -> Found:
    """The parts of a pipeline's directory (`unet/`, `scheduler/`), of a checkpoint of their training example
    (`unet_ema/`, with the pipeline's scheduler one directory up), or of a model's own.

    The averaged weights are taken where there are both. The weights are safetensors if they are there, else pickled, in
    one file or in numbered parts, and of a variant such as fp16 if there are no others.

    Raises:
        UserError: there are no weights, or those of more than one variant.
    """
    folder = next((directory / name for name in MODEL_FOLDERS if (directory / name).is_dir()), directory)
    # Only a part of a checkpoint leaves its directory to look for the scheduler.
    resolved = directory.resolve()
    above = [resolved.parent, resolved.parent.parent] if resolved.name in MODEL_FOLDERS else [resolved.parent]
    schedulers = [directory / "scheduler", directory, *(parent / "scheduler" for parent in above)]
    scheduler = next((path / SCHEDULER for path in schedulers if (path / SCHEDULER).exists()), None)
    return Found(folder, weights_in(folder, DIFFUSERS), scheduler)


def read(directory: Path, flags: Flags) -> Published:
    """The model of such a directory.

    Args:
        flags: `image_size` where the model's configuration has no `sample_size`; where there is no scheduler's
            configuration, `diffusion_steps`, `noise_schedule` and `predict_xstart`.

    Raises:
        UserError: a file is missing or damaged, or the model uses what ours lacks, or a flag does not apply.
    """
    found = find(directory)
    of_scheduler = set() if found.scheduler else {"noise_schedule", "diffusion_steps", "predict_xstart"}
    what = f"{directory}: a diffusers directory{' with its scheduler' if found.scheduler else ''}"
    flags.refuse_but({"image_size", "null_class", *of_scheduler}, what)
    config = read_config(found.folder / "config.json")
    scheduler = read_config(found.scheduler) if found.scheduler else _scheduler_of(flags, directory)
    published = convert(
        config, scheduler, read_weights(found.weights), flags.image_size, str(directory), null_class=flags.null_class
    )
    chosen = "averaged weights of unet_ema"
    return replace(published, notes=(chosen, *published.notes)) if found.folder.name == "unet_ema" else published


def _scheduler_of(flags: Flags, directory: Path) -> dict[str, Any]:
    """The configuration of the DDPMScheduler that their training example makes of such flags."""
    if flags.diffusion_steps is None or flags.noise_schedule is None:
        raise UserError(
            f"{directory}: no {SCHEDULER} in it, in scheduler/ or beside it: give --noise-schedule and "
            "--diffusion-steps, as it was trained, or put the pipeline's scheduler/ there"
        )
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": flags.diffusion_steps,
        "beta_schedule": "linear" if flags.noise_schedule == "linear" else "squaredcos_cap_v2",
        "prediction_type": "sample" if flags.predict_xstart else "epsilon",
    }


def convert(
    config: Mapping[str, Any],
    scheduler: Mapping[str, Any],
    theirs: Mapping[str, Tensor],
    image_size: int | None = None,
    where: str = "checkpoint",
    *,
    null_class: bool = False,
) -> Published:
    """The network of a UNet2DModel's configuration and weights, and the process of a scheduler's configuration.

    Args:
        null_class: whether the last of its classes stands for none.

    Raises:
        UserError: as `read`.
    """
    unet = validate(UNet2DConfig, config, where)
    of_scheduler = f"{where}: scheduler"
    process, sampling, notes = _process(scheduler, of_scheduler)
    side, channels, out_channels = unet.sample_size or image_size, unet.in_channels, unet.out_channels
    if side is None:
        raise UserError(f"{where}: it tells no sample_size: give --image-size, the side in pixels")
    if image_size not in (None, side):
        raise UserError(f"{where}: --image-size is {image_size}, but the model's sample_size is {side}; leave it out")
    if unet.layers_per_block * len(unet.block_out_channels) > len(theirs):
        raise UserError(
            f"{where}: another network: {len(theirs)} tensors, but layers_per_block is {unet.layers_per_block} on "
            f"{len(unet.block_out_channels)} levels"
        )
    network = network_config(unet, side, where, scores=process.kind == "ve")
    if out_channels != channels * (2 if process.variance == "learned_range" else 1):
        raise UserError(
            f"{where}: {channels} channels in and {out_channels} out do not go with a variance that is "
            f"{process.variance}"
        )
    codec = PixelCodec((side, side, channels))
    ours = network_of(network, codec.network_shape, out_channels, where)
    of_classes = [CLASSES] if unet.num_class_embeds is not None else []
    # Of Fourier features the key says nothing; their sines are first.
    cosines_first = unet.flip_sin_to_cos and unet.time_embedding_type == "positional"
    weights = ours_of(theirs, network, ours, where, cosines_first=cosines_first, others=of_classes)
    labels = {"embedding.weight": theirs[CLASSES]} if of_classes else None
    classes = classes_of(labels, ours, where, name=CLASSES, null=null_class)
    if classes is not None and classes.rows != unet.num_class_embeds:
        raise UserError(f"{where}: {CLASSES} has {classes.rows} rows, but num_class_embeds is {unet.num_class_embeds}")
    return Published(network, process, sampling, codec, weights, notes, classes)


def _process(scheduler: Mapping[str, Any], where: str) -> tuple[ProcessConfig, SamplingConfig, tuple[str, ...]]:
    """Of a scheduler's configuration, as `process_config`."""
    name = scheduler.get("_class_name")
    if isinstance(name, str) and name in CONTINUOUS:
        return CONTINUOUS[name](scheduler, where)
    return process_config(validate(SchedulerConfig, scheduler, where), where)


def write(published: Published, directory: Path) -> None:
    """Write a directory that `DDPMPipeline.from_pretrained` loads, and its `unet/` alone `UNet2DModel.from_pretrained`.

    Raises:
        UserError: the network uses what UNet2DModel lacks, or the sampling what DDPMScheduler does; the message names
            the key.
    """
    from safetensors.torch import save_file

    unet, scheduler = directory / "unet", directory / "scheduler"
    network, codec = published.network, published.codec
    if not isinstance(network, NetworkConfig) or not isinstance(codec, PixelCodec):
        raise UserError(f"diffusers' UNet2DModel is a unet of images; this model is a {network.kind} of {codec.name}")
    classes = published.labels
    if classes is not None and classes.perceptron:
        raise UserError("condition.label.perceptron is True, which diffusers' UNet2DModel does not have")
    out_channels = len(published.weights["out_conv.bias"])
    config = their_config(network, codec, out_channels, None if classes is None else classes.rows)
    scheduling = their_scheduler(published.process, published.sampling)
    weights = theirs_of(published.weights, network, cosines_first=False)
    if classes is not None:
        weights[CLASSES] = classes.weights["embedding.weight"].contiguous()
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
