"""What a model of latents is trained on: its autoencoder, and the latents that `ddpm encode` has stored."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from ddpm.codecs.latent import StoredLatent
from ddpm.config.model import ModelConfig
from ddpm.config.network import AutoencoderConfig
from ddpm.data.latents import Latents
from ddpm.data.store import PreparedData
from ddpm.errors import UserError
from ddpm.files import sha256_of
from ddpm.first_stage import LatentFacts
from ddpm.layout import LATENTS, find_model
from ddpm.model import Model, load
from ddpm.nets.autoencoder import AutoencoderKL, Frozen


@dataclass(frozen=True)
class FirstStage:
    """The autoencoder of a model, with what it makes of the prepared images.

    Attributes:
        codec: for training on the stored latents, and to look at what is drawn.
        facts: that the model keeps of it.
        network: the autoencoder.
        latents: of the prepared images.
    """

    codec: StoredLatent
    facts: LatentFacts
    network: Frozen
    latents: Latents


def first_stage(
    config: ModelConfig, data: PreparedData, where: str, device: torch.device, *, root: Path = Path()
) -> FirstStage | None:
    """What a model of latents is trained on; None of a model of pixels.

    Args:
        where: the model is described, for errors.
        root: the project's folder.

    Raises:
        UserError: the autoencoder or the latents are missing or damaged, or do not fit each other or the data.
    """
    if config.codec.latent is None:
        return None
    key, name = f"{where}.codec.latent.autoencoder", config.codec.latent.autoencoder
    model, sha256 = open_autoencoder(name, data, key, root, device)
    latents = Latents.open(root / LATENTS / model.card.variant, data, sha256)
    network = cast(AutoencoderKL, model.network)
    facts = LatentFacts(
        variant=model.card.variant,
        fingerprint=model.card.training.fingerprint,
        sha256=sha256,
        network=cast(AutoencoderConfig, model.card.config.network),
        shape=network.latent_shape,
        scale=latents.manifest.scale,
    )
    shared, opened = facts.codec(data.codec), Frozen(network)
    codec = StoredLatent(shared.pixels, shared.network_shape, shared.scale, opened)
    return FirstStage(codec, facts, opened, latents)


def open_autoencoder(name: str, data: PreparedData, where: str, root: Path, device: torch.device) -> tuple[Model, str]:
    """A trained autoencoder of images like the prepared ones, and the hash of its weights.

    Args:
        where: what names it, for errors.

    Raises:
        UserError: there is none, or it is of other images.
    """
    try:
        directory = find_model(name, exported=False, root=root)
        model = load(directory, device)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    if not model.card.config.reconstructs:
        raise UserError(f"{where}: {name} is no autoencoder but of network.kind {model.card.config.network.kind}")
    if (model.codec.name, model.shape) != (data.codec.name, data.codec.shape):
        of, there = ("×".join(map(str, shape)) for shape in (model.shape, data.codec.shape))
        raise UserError(
            f"{where}: {name} is an autoencoder of {model.codec.name} of {of}, but the prepared data are "
            f"{data.codec.name} of {there}"
        )
    return model, sha256_of(directory / "model.safetensors")
