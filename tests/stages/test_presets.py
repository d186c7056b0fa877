"""The shipped presets through every stage, for a few steps."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import TINY_PARAMS, run_cli, write_params

import ddpm
from ddpm.deploy.runtime import Sampler
from ddpm.files import read_json

PRESETS = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text(encoding="utf-8"))["models"]


def shortened(name: str, **data) -> dict:
    """The preset as it ships, but for the length of its training and sampling."""
    preset = PRESETS[name]
    preset = {
        **preset,
        "training": {**preset["training"], "steps": 4, "batch_size": 8, "warmup_steps": 1, "log_every": 2},
        "sampling": {**preset["sampling"], "steps": 4},
    }
    return {**TINY_PARAMS, "data": data, "variants": [name], "models": {name: preset}}


def run_stages(directory: Path, stages: list[list[str]]) -> None:
    for stage in stages:
        done = run_cli(directory, *stage)
        assert done.returncode == 0, done.stderr


def check_parity(directory: Path, name: str) -> None:
    """The exported model passed, and draws what the trained one draws."""
    assert read_json(directory / "deploy" / name / "parity.json")["passed"]
    ours = ddpm.load(directory / "models" / name).sample(3, seed=1)
    theirs = Sampler(directory / "deploy" / name).sample(3, seed=1)
    assert ours.dtype == theirs.dtype
    np.testing.assert_allclose(ours.astype(float), theirs.astype(float), atol=1 if ours.dtype == np.uint8 else 1e-3)


@pytest.mark.parametrize("name", ["linear-attention"])
def test_presets_for_images(project: Path, name: str):
    write_params(project, shortened(name, source="digits"))
    run_stages(project, [["train", name], ["evaluate", name], ["export", name]])
    assert np.isfinite(read_json(project / "reports" / name / "metrics.json")["fid"])
    check_parity(project, name)
