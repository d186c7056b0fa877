"""An autoencoder of digits, `squeeze`, and a model of its latents, `small`."""

from __future__ import annotations

import copy

from tiny import LEVELS, TINY_PARAMS

from ddpm.config.params import Params

TINY = TINY_PARAMS["models"]["tiny"]
LOSS = {"adversarial_from": 20, "discriminator_width": 8, "discriminator_layers": 1}
AUTOENCODER = {
    "network": {"kind": "autoencoder", **LEVELS, "latent_channels": 2},
    "objective": {"loss": "reconstruction", "reconstruction": LOSS},
    "training": {**TINY["training"], "steps": 30, "learning_rate": 5e-3},
}
OF_LATENTS = {
    **TINY,
    "network": {**TINY["network"], "attention_resolutions": [2]},
    "codec": {"latent": {"autoencoder": "models/squeeze"}},
    "condition": {"label": {"drop": 0.2}},
}


def params(**models: dict) -> Params:
    """The parameters of both.

    Args:
        models: beside them, or in their place.
    """
    tiny = copy.deepcopy(TINY_PARAMS)
    tiny["models"] |= {"squeeze": copy.deepcopy(AUTOENCODER), "small": copy.deepcopy(OF_LATENTS), **models}
    return Params.model_validate(tiny)
