"""The models of `bench.latent`, and what their training costs."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.ablation import changed
from ddpm.config.codec import CodecConfig, LatentConfig
from ddpm.config.condition import ConditionConfig
from ddpm.config.model import VariantConfig
from ddpm.config.params import Params
from ddpm.layout import EXTRACTOR, LATENTS, MODELS, PREPARED
from ddpm.model import Model
from ddpm.nets.autoencoder import AutoencoderKL
from ddpm.stages.encode import encode
from ddpm.stages.extractor import fit_extractor
from ddpm.stages.train import train_variant
from ddpm.stages.train_autoencoder import perceptual_of, train_autoencoder
from ddpm.training.configured import compression_task
from ddpm.training.cost import training_flops
from ddpm.training.tasks import Batch


class Subjects(NamedTuple):
    """The models that are compared on one data set, by their names below `models/`."""

    autoencoder: str
    latents: str
    pixels: str


EMOJI = Subjects("autoencoder-emoji", "latents-emoji", "emoji")
FASHION = Subjects("autoencoder-fashion", "latents-fashion", "pixels-fashion")

# Autoencoders of emoji that differ in one thing, each trained for equally many steps: changes of `autoencoder-emoji`.
SHORT = {"training": {"steps": 200}, "reconstruction": {"adversarial_from": 150}}
AUTOENCODERS: dict[str, dict[str, dict[str, Any]]] = {
    "f2": {"network": {"multipliers": (1, 2)}},
    "f4": {},
    "f8": {"network": {"multipliers": (1, 2, 4, 4)}},
    "f4-strong-kl": {"reconstruction": {"kl": 1e-3}},
}


def emoji_models(params: Params) -> dict[str, VariantConfig]:
    """Without captions. The preset `emoji` has more operations in training than the two others together."""
    preset = params.variant(EMOJI.autoencoder)
    latents = changed(
        without_condition(params.variant("latent-emoji")),
        {"training": {"steps": 1000}, "sampling": {"guidance_scale": 1.0}},
    )
    others = {f"autoencoder-{name}": autoencoder(preset, SHORT, change) for name, change in AUTOENCODERS.items()}
    return {
        EMOJI.autoencoder: preset,
        EMOJI.latents: latents,
        EMOJI.pixels: params.variant(EMOJI.pixels),
        **others,
    }


def fashion_models(params: Params) -> dict[str, VariantConfig]:
    """Without classes. 28 halves twice, and 7 not at all: the latents' U-Net has one level. The model of pixels has as
    many steps as the two others together have operations in training."""
    common: dict[str, dict[str, Any]] = {
        "process": {"schedule": "cosine", "prediction": "v"},
        "training": {"steps": 600, "batch_size": 64, "learning_rate": 1e-3, "warmup_steps": 100, "decay": "cosine"},
    }
    base = changed(without_condition(params.variant("conditional-fashion")), common)
    one_level = {"width": 64, "multipliers": (1,), "head_channels": 32, "scale_shift": True, "frequency_shift": 0}
    latents = changed(base, {"network": one_level})
    training = {"training": {"steps": 400, "batch_size": 32, "learning_rate": 2e-3}}
    return {
        FASHION.autoencoder: autoencoder(
            params.variant(EMOJI.autoencoder), training, {"reconstruction": {"adversarial_from": 300}}
        ),
        FASHION.latents: latents.model_copy(
            update={"codec": CodecConfig(latent=LatentConfig(autoencoder=f"models/{FASHION.autoencoder}"))}
        ),
        FASHION.pixels: changed(base, {"network": {"width": 16, "multipliers": (1, 2, 4)}, "training": {"steps": 700}}),
    }


def without_condition(config: VariantConfig) -> VariantConfig:
    """The same model without labels and captions."""
    return config.model_copy(update={"condition": ConditionConfig()})


def autoencoder(preset: VariantConfig, *changes: Mapping[str, Mapping[str, Any]]) -> VariantConfig:
    """An autoencoder with other values of some keys of its sections, and of `objective.reconstruction`."""
    for change in changes:
        weights = preset.objective.reconstruction
        assert weights is not None
        loss = weights.model_copy(update=dict(change.get("reconstruction", {})))
        sections = {name: values for name, values in change.items() if name != "reconstruction"}
        preset = changed(preset, {**sections, "objective": {"reconstruction": loss}})
    return preset


def train_missing(params: Params, root: Path) -> None:
    """Train those of the models that the project does not have, and encode the images for those of latents."""
    for name, config in params.models.items():
        if config.codec.latent is not None and not (root / LATENTS / str(config.codec.latent.name)).is_dir():
            encode(params, str(config.codec.latent.name), root=root)
        if not (root / MODELS / name).is_dir():
            (train_autoencoder if config.reconstructs else train_variant)(params, name, root=root)


def unseen_by_losses(params: Params, root: Path) -> Path:
    """A project with the same prepared data and another extractor, fitted there if it is missing.

    An autoencoder's perceptual loss is in the features of its project's own extractor: its FID in them is lower than
    its images deserve, and so is that of the model of its latents.
    """
    apart = root / ".ddpm" / "latent-judge"
    if not (apart / EXTRACTOR).is_dir():
        apart.mkdir(parents=True, exist_ok=True)
        if not (apart / PREPARED).is_symlink():
            (apart / PREPARED).symlink_to((root / PREPARED).absolute(), target_is_directory=True)
        fit_extractor(params.model_copy(update={"seed": params.seed + 1}), root=apart)
    return apart


def training_teraflops(model: Model, config: VariantConfig) -> float:
    """10¹² operations of the training of a model that draws, as `ddpm.training.cost` counts them."""
    images = config.training.steps * config.training.batch_size
    return training_flops(model.network, model.codec.network_shape) * images / 1e12


def encoding_teraflops(autoencoder: Model, images: int) -> float:
    """10¹² operations to encode so many images."""
    network, x = _unreal(autoencoder)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.encode(x)
    return counter.get_total_flops() * images / 1e12


def autoencoder_teraflops(autoencoder: Model, params: Params, root: Path) -> float:
    """10¹² operations of an autoencoder's training, with the network of the perceptual loss and the discriminator.

    Args:
        root: the project's folder, with the extractor.
    """
    name, x = autoencoder.card.variant, _unreal(autoencoder)[1]
    config = params.variant(name)
    options = config.objective.reconstruction
    assert options is not None
    task = compression_task(options, autoencoder.codec, perceptual_of(params, name, root), 0, x.device)

    def once(step: int) -> int:
        network, t = _unreal(autoencoder)[0].requires_grad_(), torch.zeros(1, dtype=torch.int64, device=x.device)
        with FlopCounterMode(display=False) as counter:
            task.losses(network, Batch(x, {}, step=step), t, x).sum().backward()
        return counter.get_total_flops()

    steps = config.training.steps
    alone = min(steps, options.adversarial_from)
    return config.training.batch_size * (alone * once(0) + (steps - alone) * once(alone)) / 1e12


def _unreal(autoencoder: Model) -> tuple[AutoencoderKL, torch.Tensor]:
    """A copy of an autoencoder and an image on no device, where only shapes are computed: on the CPU torch does not
    count attention."""
    network = cast(AutoencoderKL, copy.deepcopy(autoencoder.network).to("meta"))
    return network, torch.zeros(1, *autoencoder.codec.network_shape, device="meta")
