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
from ddpm.evaluation.accessory import open_accessory
from ddpm.first_stage import LatentFacts
from ddpm.layout import LATENTS
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
    model, sha256 = open_accessory("autoencoder", name, data.codec, key, root, device)
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
