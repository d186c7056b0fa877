"""Directories of diffusers' `StableDiffusionPipeline`: unet, vae, text_encoder, tokenizer and scheduler. Neither
diffusers nor transformers is needed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ddpm.conditioning.tokenizers import BytePairs
from ddpm.config.base import validate
from ddpm.config.network import NetworkConfig
from ddpm.errors import UserError
from ddpm.files import write_json
from ddpm.interop import clip
from ddpm.interop.diffusers.autoencoder import (
    read_autoencoder,
    their_autoencoder_config,
    their_autoencoder_weights,
)
from ddpm.interop.diffusers.scheduler import SchedulerConfig, process_config, their_scheduler
from ddpm.interop.diffusers.unet_condition import CLASS, UNet2DConditionConfig, network_config, their_config
from ddpm.interop.diffusers.weights import ours_of, theirs_of
from ddpm.interop.folders import DIFFUSERS, TRANSFORMERS, read_config, read_weights, weights_in
from ddpm.interop.latent import assembled, check_fit, text_of
from ddpm.interop.published import Autoencoder, Flags, Published, Text, network_of
from ddpm.nets.condition import Ports
from ddpm.nets.text import Marks

# What each folder of a pipeline holds, for errors.
FOLDERS = {
    "unet": "the U-Net (UNet2DConditionModel)",
    "vae": "the autoencoder (AutoencoderKL)",
    "text_encoder": "the text encoder (CLIPTextModel)",
    "tokenizer": "the tokenizer (CLIP's vocab.json and merges.txt)",
    "scheduler": "the scheduler's configuration",
}
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "DDPMScheduler"],
    "safety_checker": [None, None],
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
}
# Parts of such pipelines that draw nothing.
_LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")


def is_theirs(directory: Path) -> bool:
    """Whether it is a pipeline with a U-Net that is conditioned on captions."""
    config = directory / "unet" / "config.json"
    return config.is_file() and read_config(config).get("_class_name") == CLASS


def read(directory: Path, flags: Flags) -> tuple[Published, tuple[Path, ...]]:
    """The model of such a directory, and the files that have its weights.

    Args:
        flags: `image_size` where the U-Net's configuration has no `sample_size`.

    Raises:
        UserError: a part is missing or damaged, uses what ours lacks, or does not fit the others.
    """
    flags.refuse_but({"image_size"}, f"{directory}: a diffusers pipeline")
    for folder, what in FOLDERS.items():
        if not (directory / folder).is_dir():
            raise UserError(f"{directory}: no {folder}/, {what}: a model of captions needs it")
    files = {name: weights_in(directory / name, DIFFUSERS) for name in ("unet", "vae")}
    autoencoder, channels = _autoencoder(directory / "vae", files["vae"])
    published, of_text = clip.read(directory / "text_encoder")
    text = text_of(published, directory / "tokenizer", str(directory))
    config = validate(UNet2DConditionConfig, read_config(directory / "unet" / "config.json"), str(directory / "unet"))
    check_fit(config.in_channels, config.out_channels, config.cross_attention_dim, autoencoder, text, str(directory))
    side = _side(config, flags, 2 ** (len(autoencoder.network.multipliers) - 1), str(directory))
    where = str(directory / "scheduler")
    scheduler = validate(SchedulerConfig, read_config(directory / "scheduler" / "scheduler_config.json"), where)
    process, sampling, notes = process_config(scheduler, where)
    network, weights = _unet(config, read_weights(files["unet"]), side, str(directory / "unet"))
    left_out = [name for name in _LEFT_OUT if (directory / name).is_dir()]
    model = assembled(
        network,
        weights,
        process,
        sampling,
        side=side,
        channels=channels,
        autoencoder=autoencoder,
        text=text,
        notes=(*notes, *(f"{name} is left out" for name in left_out)),
    )
    return model, (*files["unet"], *files["vae"], *of_text)


def _autoencoder(folder: Path, files: tuple[Path, ...]) -> tuple[Autoencoder, int]:
    """The autoencoder, and the channels of its pictures."""
    config = read_config(folder / "config.json")
    network, theirs, weights = read_autoencoder(config, read_weights(files), str(folder))
    return Autoencoder(network, weights, theirs.scaling_factor), theirs.in_channels


def _side(config: UNet2DConditionConfig, flags: Flags, factor: int, where: str) -> int:
    """Of the latents.

    Args:
        factor: by which the pictures' side is larger.
    """
    if config.sample_size is None:
        if flags.image_size is None:
            raise UserError(f"{where}: it tells no sample_size: give --image-size, the pictures' side in pixels")
        return flags.image_size // factor
    if flags.image_size not in (None, config.sample_size * factor):
        raise UserError(
            f"{where}: --image-size is {flags.image_size}, but the model's pictures have {config.sample_size * factor} "
            "pixels a side; leave it out"
        )
    return config.sample_size


def _unet(
    config: UNet2DConditionConfig, theirs: Mapping[str, Tensor], side: int, where: str
) -> tuple[NetworkConfig, dict[str, Tensor]]:
    """The U-Net's configuration and weights, as ours."""
    if config.layers_per_block * len(config.block_out_channels) > len(theirs):
        raise UserError(f"{where}: another network: only {len(theirs)} tensors")
    network, shape = network_config(config, side, where), (config.in_channels, side, side)
    ours = network_of(network, shape, config.out_channels, where, Ports(tokens=config.cross_attention_dim))
    return network, ours_of(theirs, network, ours, where, cosines_first=config.flip_sin_to_cos)


def write(published: Published, directory: Path) -> None:
    """Write a directory that `StableDiffusionPipeline.from_pretrained` loads.

    Raises:
        UserError: a part uses what theirs lacks; the message names the key.
    """
    from safetensors.torch import save_file

    text, autoencoder, network = published.text, published.autoencoder, published.network
    if text is None or autoencoder is None or not isinstance(network, NetworkConfig):
        raise UserError(
            "diffusers' StableDiffusionPipeline is a unet of latents that is conditioned on captions; this model is not"
        )
    _check_text(text)
    codec, tokenizer = published.codec, BytePairs.from_json(text.tokenizer)
    side, channels = codec.network_shape[1], codec.shape[2]
    latents, width = autoencoder.network.latent_channels, text.options["width"]
    out_channels = len(published.weights["out_conv.bias"])
    filler = text.options.get("filler")
    marks = Marks(tokenizer.start, tokenizer.padding, tokenizer.padding if filler is None else filler)
    encoder = {name.removeprefix("encoder."): tensor for name, tensor in text.weights.items()}
    configs: dict[str, dict[str, Any]] = {
        "unet": their_config(network, side, latents, out_channels, width) | {"flip_sin_to_cos": True},
        "vae": their_autoencoder_config(autoencoder.network, channels, codec.shape[0], autoencoder.scale),
        "text_encoder": clip.their_config(text.options, tokenizer.size, marks),
    }
    scheduler = their_scheduler(published.process, published.sampling)
    weights = {
        "unet": theirs_of(published.weights, network, cosines_first=True),
        "vae": their_autoencoder_weights(autoencoder.network, autoencoder.weights),
        "text_encoder": clip.their_weights(encoder),
    }
    for folder in FOLDERS:
        (directory / folder).mkdir()
    for folder, config in configs.items():
        stems = TRANSFORMERS if folder == "text_encoder" else DIFFUSERS
        write_json(directory / folder / "config.json", config)
        save_file(
            weights[folder], directory / folder / f"{stems['.safetensors']}.safetensors", metadata={"format": "pt"}
        )
    write_json(directory / "scheduler" / "scheduler_config.json", scheduler)
    _write_tokenizer(tokenizer, marks, text.options["length"] + clip.MARKS, directory / "tokenizer")
    write_json(directory / "model_index.json", INDEX)


def _check_text(text: Text) -> None:
    """
    Raises:
        UserError: the caption conditions the model in another way than in such a pipeline.
    """
    for key, wanted in (("encoder", "clip"), ("tokenizer", "bpe"), ("pooled", False)):
        if text.options[key] != wanted:
            raise UserError(
                f"condition.prompt.{key} is {text.options[key]}, which diffusers' StableDiffusionPipeline does not "
                f"have; expected {wanted}"
            )


def _write_tokenizer(tokenizer: BytePairs, marks: Marks, length: int, folder: Path) -> None:
    """CLIP's files.

    Args:
        length: with the marks.
    """
    write_json(folder / "vocab.json", {token: number for number, token in enumerate(tokenizer.vocabulary)})
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *tokenizer.merges, ""]), encoding="utf-8")
    start, end, filler = (tokenizer.vocabulary[number] for number in marks)
    special = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": filler}
    write_json(folder / "special_tokens_map.json", special)
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, "do_lower_case": True}
    write_json(folder / "tokenizer_config.json", {**config, **special})
