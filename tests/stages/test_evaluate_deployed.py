"""The exported model measured as the trained one is."""

import json
from pathlib import Path

import pytest

from ddpm.config import load_params
from ddpm.errors import UserError
from ddpm.stages.deployed import evaluate_deployed


def test_the_exported_model_has_the_figures_and_the_protocol_of_the_trained_one(trained: Path):
    found = evaluate_deployed(load_params(), Path("deploy/tiny"))
    recorded = json.loads(Path("reports/tiny/metrics.json").read_text())
    assert found.protocol.id == recorded["protocol"]
    assert found.metrics.keys() < recorded.keys()
    # A pixel's rounding may fall on the other side.
    assert found.metrics == pytest.approx({key: recorded[key] for key in found.metrics}, rel=1e-2)


def test_a_deploy_directory_without_its_description_is_named(trained: Path):
    Path("deploy/tiny/sampler.json").unlink()
    with pytest.raises(UserError, match=r"deploy/tiny is not a deploy directory: sampler.json is missing"):
        evaluate_deployed(load_params(), Path("deploy/tiny"))
