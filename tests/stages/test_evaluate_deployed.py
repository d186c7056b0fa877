"""The exported model measured as the trained one is."""

import json
from pathlib import Path

import pytest

from ddpm.cli import main
from ddpm.config.params import load_params
from ddpm.config.sampling import SamplingConfig
from ddpm.errors import UserError
from ddpm.stages.measure import evaluate_deployed


def test_the_exported_model_has_the_figures_and_the_protocol_of_the_trained_one(trained: Path):
    found = evaluate_deployed(load_params(), Path("deploy/tiny"))
    recorded = json.loads(Path("reports/tiny/metrics.json").read_text())
    assert found.protocol.id == recorded["protocol"]
    assert found.metrics.keys() < recorded.keys()
    # A pixel's rounding may fall on the other side.
    assert found.metrics == pytest.approx({key: recorded[key] for key in found.metrics}, rel=1e-2)


def test_a_plan_for_all_models_has_nothing_of_the_models_own(trained: Path):
    """One id and the same figures, whatever plan and variance a model came with."""
    params = load_params()
    plan = SamplingConfig(sampler="dpmpp_2m", steps=4)
    params = params.model_copy(update={"evaluation": params.evaluation.model_copy(update={"sampling": plan})})
    path = Path("deploy/tiny/sampler.json")
    facts = json.loads(path.read_text())
    found = evaluate_deployed(params, Path("deploy/tiny"))
    facts["sampling"] |= {"dynamic_threshold": 0.5, "clip": False, "spacing": "quadratic", "variance": "fixed_large"}
    facts["process"]["variance"] = "fixed_large"
    path.write_text(json.dumps(facts))
    again = evaluate_deployed(params, Path("deploy/tiny"))
    assert (again.protocol.id, again.metrics) == (found.protocol.id, found.metrics)


def test_a_deploy_directory_without_its_description_is_named(trained: Path):
    Path("deploy/tiny/sampler.json").unlink()
    with pytest.raises(UserError, match=r"deploy/tiny: expected .* a deploy directory \(sampler.json\)"):
        evaluate_deployed(load_params(), Path("deploy/tiny"))


def test_the_figures_of_a_deploy_directory_are_written_to_a_file(trained: Path):
    assert main(["measure", "deploy/tiny", "--out", "figures.json"]) == 0
    written = json.loads(Path("figures.json").read_text())
    assert written["protocol"] == json.loads(Path("reports/tiny/protocol.json").read_text())
    assert written["metrics"]["samples"] == 64


def test_a_model_of_another_shape_than_the_data_is_not_measured(trained: Path, capsys):
    facts = json.loads(Path("deploy/tiny/sampler.json").read_text())
    Path("deploy/tiny/sampler.json").write_text(json.dumps({**facts, "shape": [16, 16, 1]}))
    assert main(["measure", "deploy/tiny", "--out", "figures.json"]) == 2
    said = capsys.readouterr().err
    assert said == "ddpm measure: deploy/tiny makes images of 16×16×1, but the prepared data are of 8×8×1\n"
    assert not Path("figures.json").exists()
