"""A model that learns its variance, from training to the exported sampler."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from untrained import ONE_LEVEL

import ddpm
from ddpm import cli
from ddpm.config.params import load_params
from ddpm.deploy.runtime import Sampler


def test_a_model_that_learns_its_variance_is_trained_exported_and_sampled(project: Path):
    params = yaml.safe_load((project / "params.yaml").read_text())
    tiny = params["models"]["tiny"]
    tiny["network"] = ONE_LEVEL
    tiny["process"] = {"timesteps": 20, "schedule": "cosine", "prediction": "v", "variance": "learned_range"}
    tiny["objective"] = {"loss": "hybrid", "weighting": "min_snr", "timestep_sampler": "importance"}
    tiny["sampling"] = {"sampler": "unipc", "steps": 5, "dynamic_threshold": 0.995}
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    for stage in ("train", "evaluate", "export"):
        assert cli.main([stage, "tiny"]) == 0

    parity = json.loads((project / "deploy/tiny/parity.json").read_text())
    assert (parity["passed"], parity["sampler"]) == (True, "ancestral")
    protocol = json.loads((project / "reports/tiny/protocol.json").read_text())
    assert (protocol["variance"], protocol["dynamic_threshold"]) == (None, 0.995)  # which UniPC has no use for

    model, sampler = ddpm.load(project / "models/tiny"), Sampler(project / "deploy/tiny")
    model = model.sampled_by(load_params().variant("tiny").sampling)
    assert model.network.out_conv.out_channels == 2
    drawn = {}
    for options in ({}, {"sampler": "ancestral"}, {"sampler": "ancestral", "variance": "fixed_small"}):
        ours, theirs = (each.sample(6, seed=9, **options).astype(int) for each in (model, sampler))
        assert np.abs(ours - theirs).max() <= 1
        in_graph = Sampler(project / "deploy/tiny", in_graph=True).sample(6, seed=9, **options).astype(int)
        assert np.abs(ours - in_graph).max() <= 1
        drawn[options.get("variance")] = ours
    assert not np.array_equal(drawn[None], drawn["fixed_small"])

    assert cli.main(["sample", "deploy/tiny", "--sampler", "dpmpp_2m", "--steps", "4", "--out", "a.npz"]) == 0


@pytest.mark.parametrize("model", ["models/tiny", "deploy/tiny"])
def test_a_variance_that_was_not_learned_cannot_be_asked_for(trained: Path, model: str, capsys):
    asked = ["--sampler", "ancestral", "--variance", "learned_range"]
    assert cli.main(["sample", model, *asked, "--out", "a.npz"]) == 2
    assert "the network was trained with fixed_small" in capsys.readouterr().err
