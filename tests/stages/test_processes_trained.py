"""Models of other processes, from training to the exported sampler."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from untrained import ONE_LEVEL, export, untrained

import ddpm
from ddpm import cli
from ddpm.config.params import load_params
from ddpm.deploy.runtime import Sampler
from ddpm.model.card import DataFacts

EDM = {"kind": "edm", "prediction": "edm", "timesteps": 200, "sigma_max": 40.0}
FLOW = {"kind": "flow", "prediction": "velocity", "timesteps": 200}
VE = {"kind": "ve", "prediction": "score", "timesteps": 20, "sigma_max": 10.0}
TOLD_SIGMA = {**VE, "time": "sigma"}
FOURIER = {"time_embedding": "fourier", "input_range": "unit", "timestep_scale": 0.5}
FACTS = DataFacts(name="digits", shape=(8, 8, 1), classes=None)


def test_a_model_in_continuous_time_is_trained_measured_exported_and_sampled(project: Path):
    params = yaml.safe_load((project / "params.yaml").read_text())
    tiny = params["models"]["tiny"]
    tiny["network"], tiny["process"] = ONE_LEVEL, EDM
    tiny["sampling"] = {"sampler": "heun", "steps": 7, "spacing": "native"}
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    for stage in ("train", "evaluate", "export"):
        assert cli.main([stage, "tiny"]) == 0
    assert json.loads((project / "deploy/tiny/parity.json").read_text())["passed"]
    model, sampler = ddpm.load(project / "models/tiny"), Sampler(project / "deploy/tiny")
    model = model.sampled_by(load_params().variant("tiny").sampling)
    for options in ({}, {"sampler": "euler_ancestral"}, {"churn": 3.0}):
        ours, theirs = (each.sample(6, seed=9, **options).astype(int) for each in (model, sampler))
        assert np.abs(ours - theirs).max() <= 1
    protocol = json.loads((project / "reports/tiny/protocol.json").read_text())
    assert (protocol["sampler"], protocol["steps"]) == ("heun", 7)
    metrics = json.loads((project / "reports/tiny/metrics.json").read_text())
    assert np.isfinite(metrics["nll_ode_validation"])
    assert metrics["nll_ode_validation_std"] > 0
    assert "nll_validation" not in metrics, "there is no bound in continuous time"
    asked = ["--sampler", "dpmpp_2m", "--steps", "4", "--spacing", "karras", "--out", "a.npz"]
    assert cli.main(["sample", "deploy/tiny", *asked]) == 0


@pytest.mark.parametrize(
    ("process", "network", "sampling"),
    [
        (FLOW, {}, {"sampler": "euler", "steps": 6, "spacing": "native"}),
        (VE, {}, {"sampler": "langevin", "steps": 21, "langevin_steps": 2, "spacing": "native"}),
        (TOLD_SIGMA, FOURIER, {"sampler": "euler_maruyama", "steps": 7, "spacing": "native"}),
    ],
    ids=["flow", "ve", "ve told sigma"],
)
def test_a_model_of_another_process_draws_the_same_images_exported(process, network, sampling, tmp_path):
    network = {**ONE_LEVEL, **network}
    model = ddpm.load(untrained("other", tmp_path, FACTS, network=network, process=process, sampling=sampling))
    out = export(model, tmp_path / "deploy")
    ours = model.sample(4, seed=3).astype(int)
    for in_graph in (False, True):
        theirs = Sampler(out, in_graph=in_graph).sample(4, seed=3).astype(int)
        assert np.abs(ours - theirs).max() <= 1
    assert ours.std() > 0


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"process": {"kind": "edm", "rho": 0}}, "process.rho"),
        ({"process": {"kind": "vp", "sigma_max": 10.0}}, "`sigma_max` is not used by `kind: vp`"),
        ({"process": {"kind": "ve", "rho": 7.0}}, "`rho` is not used by `kind: ve`; it uses: sigma_max, sigma_min"),
        ({"process": {"kind": "ve", "sigma_min": 60.0}}, "`sigma_min` must be below sigma_max, 50; it is 60"),
        ({"process": {"kind": "flow", "schedule": "cosine", "prediction": "v"}}, "`schedule` is of `kind: vp`"),
        ({"process": {"kind": "flow", "prediction": "epsilon"}}, "`kind: flow` begins at noise alone"),
        ({"process": {"kind": "edm", "variance": "learned_range"}}, "needs numbered levels, which `kind: edm` has not"),
        ({"process": {"kind": "edm", "time": "sigma"}}, "`time` is not used by `kind: edm`"),
        (
            {"process": {**TOLD_SIGMA, "variance": "learned_range"}},
            "needs numbered levels, which `time: sigma` has not",
        ),
        (
            {"process": VE, "network": FOURIER},
            "begins at 0 with process.kind ve: use process.kind ve with process.time sigma",
        ),
        ({"process": {"kind": "edm"}, "objective": {"loss": "vlb"}}, "objective.loss vlb needs numbered levels"),
        (
            {"process": {"kind": "edm"}, "objective": {"timestep_sampler": "importance"}},
            "objective.timestep_sampler importance needs numbered levels",
        ),
        (
            {"process": {"kind": "vp", "timesteps": 10}, "sampling": {"sampler": "heun", "steps": 21}},
            "sampling.steps is 21",
        ),
        ({"process": {"kind": "sde"}}, "process.kind"),
        ({"sampling": {"sampler": "heun", "churn_interval": [2.0, 1.0]}}, "`churn_interval` is"),
    ],
)
def test_numbers_that_do_not_fit(project: Path, section, words, capsys):
    params = yaml.safe_load((project / "params.yaml").read_text())
    for key, values in section.items():
        params["models"]["tiny"][key] = values
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    assert cli.main(["config"]) == 2
    assert words in capsys.readouterr().err


def test_a_model_that_leaves_the_image_at_its_end_is_refused(project: Path, capsys):
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["models"]["tiny"]["process"] = {"kind": "ve", "timesteps": 10, "sigma_max": 1.0}
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    assert cli.main(["train", "tiny"]) == 2
    assert "kind ve with 10 timesteps ends at alpha_bar = 0.5" in (told := capsys.readouterr().err)
    assert "Use a larger sigma_max" in told
