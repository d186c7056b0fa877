"""The real graph with a model of latents and a control of it: the autoencoder first, then the latents, the model, and
its control; and what a change of each runs again.
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from test_guides_in_dvc import pipeline, ran  # noqa: F401  (pipeline is a fixture)
from tiny import TINY_PARAMS, write_params

from ddpm.files import read_json, sha256_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

AUTOENCODER = {"kind": "autoencoder", "width": 8, "multipliers": [1, 2], "blocks": 1, "latent_channels": 2, "groups": 4}


def params() -> dict:
    """An autoencoder of digits, a model of its latents and a control of that, trained for a few steps."""
    params = copy.deepcopy(TINY_PARAMS)
    tiny = params["models"].pop("tiny")
    tiny["training"] |= {"steps": 6, "checkpoint_every": 5, "log_every": 2}
    loss = {"loss": "reconstruction", "reconstruction": {"adversarial_from": 3, "discriminator_width": 8}}
    loss["reconstruction"]["discriminator_layers"] = 1
    squeeze = {**copy.deepcopy(tiny), "network": AUTOENCODER, "objective": loss}
    small = {**copy.deepcopy(tiny), "codec": {"latent": {"autoencoder": "models/squeeze"}}}
    small["network"] = {**tiny["network"], "attention_resolutions": [2]}
    control = {"control": {"of": "models/small", "hint": "silhouette", "widths": [4, 8]}}
    models = {"squeeze": squeeze, "small": small, "steered": {**copy.deepcopy(small), "condition": control}}
    built = {"variants": [], "autoencoders": ["squeeze"], "latents": {"small": "squeeze"}}
    return params | built | {"controls": {"steered": {"of": "small"}}, "models": models}


def test_the_order_and_what_a_change_reruns(pipeline: Path):  # noqa: F811
    write_params(pipeline, params())
    first = ran(pipeline)
    for earlier, later in (
        ("fit-extractor", "train-autoencoder@squeeze"),
        ("train-autoencoder@squeeze", "encode@squeeze"),
        ("train-autoencoder@squeeze", "evaluate-autoencoder@squeeze"),
        ("encode@squeeze", "train-latent@small"),
        ("train-latent@small", "evaluate-latent@small"),
        ("train-latent@small", "export-latent@small"),
        ("train-latent@small", "train-control@steered"),
        ("train-control@steered", "evaluate-control@steered"),
        ("train-control@steered", "export-control@steered"),
    ):
        assert first.index(earlier) < first.index(later)
    assert not {stage for stage in ran(pipeline) if stage != "fetch"}
    card = read_json(pipeline / "models/small/model.json")
    assert card["data"]["latent"]["sha256"] == sha256_of(pipeline / "models/squeeze/model.safetensors")

    changed = params()
    changed["models"]["small"]["training"]["learning_rate"] = 2e-3
    write_params(pipeline, changed)
    stages = ("train", "evaluate", "export")
    of_small = {f"{stage}-{model}" for stage in stages for model in ("latent@small", "control@steered")}
    assert set(ran(pipeline)) - {"fetch"} == of_small

    changed["models"]["squeeze"]["training"]["learning_rate"] = 2e-3
    write_params(pipeline, changed)
    of_squeeze = {"train-autoencoder@squeeze", "evaluate-autoencoder@squeeze", "encode@squeeze"}
    assert set(ran(pipeline)) - {"fetch"} == of_squeeze | of_small
    assert all(read_json(pipeline / f"deploy/{name}/parity.json")["passed"] for name in ("small", "steered"))
    card = read_json(pipeline / "models/steered/model.json")
    assert card["training"]["control_of"]["sha256"] == sha256_of(pipeline / "models/small/model.safetensors")
    assert card["data"]["latent"]["sha256"] == sha256_of(pipeline / "models/squeeze/model.safetensors")
