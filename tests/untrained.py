"""Models with random weights, and what `ddpm export` makes of them, without a project around them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from tiny import TINY_PARAMS
from weights import awake

from ddpm.config.model import VariantConfig
from ddpm.export.files import describe_sampler, export_decoder, export_denoiser, export_guide, export_sampler
from ddpm.model import Model, save
from ddpm.model.card import DataFacts, ModelCard, TrainingFacts
from ddpm.model.network import build_network, columns_for
from ddpm.nets import build
from ddpm.nets.autoencoder import Frozen

# A network of one level, for what does not depend on the network: it is exported in half the time of the tiny one.
ONE_LEVEL = {"width": 8, "multipliers": [1], "blocks": 1, "attention_resolutions": [], "groups": 4}


def untrained(name: str, directory: Path, facts: DataFacts, *, seed: int = 0, **sections: Any) -> Path:
    """A model directory with random weights."""
    config = VariantConfig.model_validate({**copy.deepcopy(TINY_PARAMS["models"]["tiny"]), **sections})
    network = awake(build_network(config, facts.codec, columns=columns_for(config, facts, name)), std=0.1, seed=seed)
    autoencoder = None
    if facts.latent is not None:
        height, _, channels = facts.shape
        halves = build(facts.latent.network.model_dump(), image_size=height, channels=channels)
        autoencoder = Frozen(awake(halves, std=0.1, seed=seed + 1))
    card = ModelCard(variant=name, config=config, data=facts, training=TrainingFacts(fingerprint=name), parameters=1)
    save(Model(network, card, autoencoder=autoencoder), directory / name)
    return directory / name


def export(model: Model, out: Path) -> Path:
    """A deploy directory, in the order of `ddpm export`."""
    guide, decoder = None, None
    out.mkdir(parents=True)
    denoiser = out / "denoiser.onnx"
    export_denoiser(model, denoiser)
    if model.guide is not None:
        guide = out / "guide.onnx"
        export_guide(model, denoiser, guide)
    if model.autoencoder is not None:
        decoder = out / "decoder.onnx"
        export_decoder(model, denoiser, decoder)
    export_sampler(model, denoiser, out / "sampler.onnx", guide, decoder)
    describe_sampler(model, out)
    return out
