"""The shipped presets through every stage, for a few steps."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tiny import TINY_PARAMS, write_params

import ddpm
from ddpm import cli
from ddpm.config.params import load_params
from ddpm.config.sampling import SamplingConfig
from ddpm.data.store import PreparedData
from ddpm.deploy.runtime import Sampler
from ddpm.evaluation.scores import scores_of
from ddpm.figures.seeds import seeds_of
from ddpm.files import read_json

UNETS = ("ddpm", "conditional", "improved-ddpm", "adm")
OTHER_PROCESSES = ("ncsn", "edm", "flow")  # in fewer steps: test_processes_trained.py
SWISS_ROLLS = ("swiss-roll", "swiss-roll-ncsn", "swiss-roll-edm", "swiss-roll-flow")
# For other data than the digits, and hours or days.
LARGE = {"ddpm-cifar10", "improved-ddpm-cifar10", "conditional-fashion", "classifier-fashion", "adm-conditional"}
# tests/flows/test_demo_text.py, test_demo_latent.py, test_demo_control.py
EMOJI = {"text-8", "text-32", "emoji", "text-emoji", "inpaint-emoji", "autoencoder-emoji", "latent-emoji"}
EMOJI |= {"control-emoji", "clip-emoji", "clip-noised-emoji", "prior-emoji", "decoder-emoji"}
OTHER_NETWORKS = ("linear-attention", "vae")
FOR_OTHERS = {
    **{name: {"source": "swiss-roll"} for name in SWISS_ROLLS},
    "linear-attention-1d": {"source": "sequences", "path": "waves.npy"},
}
PRESETS = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text(encoding="utf-8"))["models"]


def shortened(name: str, **data) -> dict:
    """The preset as it ships, but for the length of its training and sampling."""
    preset = PRESETS[name]
    timesteps = preset["process"].get("timesteps", 1000)
    preset = {
        **preset,
        "training": {**preset["training"], "steps": 4, "batch_size": 8, "warmup_steps": 1, "log_every": 2},
        "sampling": {**preset["sampling"], "steps": min(4, timesteps)},
    }
    # The presets have a thousand timesteps, and the bound looks at them all.
    evaluation = {**TINY_PARAMS["evaluation"], "nll_samples": 0}
    shared = {**copy.deepcopy(TINY_PARAMS), "evaluation": evaluation}
    return {**shared, "data": data, "variants": [name], "models": {name: preset}}


def check_parity(directory: Path, name: str) -> None:
    """The exported model passed, and draws what the trained one draws."""
    assert read_json(directory / "deploy" / name / "parity.json")["passed"]
    plan = load_params(directory / "params.yaml").variant(name).sampling
    ours = ddpm.load(directory / "models" / name).sampled_by(plan).sample(3, seed=1)
    for in_graph in (False, True):
        theirs = Sampler(directory / "deploy" / name, in_graph=in_graph).sample(3, seed=1)
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours.astype(float), theirs.astype(float), atol=1 if ours.dtype == np.uint8 else 1e-3)


def stages(directory: Path, *commands: str) -> None:
    for command in commands:
        assert cli.main(command.split()) == 0, command


def test_every_preset_but_those_of_days_is_here():
    """What a new preset is missing from is not tested."""
    tested = {*UNETS, *OTHER_PROCESSES, *OTHER_NETWORKS, *FOR_OTHERS, "improved-ddpm-vlb"}
    assert tested == PRESETS.keys() - LARGE - EMOJI - {"classifier"}  # which test_classifier.py trains


def train_on_digits(project: Path, name: str) -> None:
    write_params(project, shortened(name, source="digits"))
    stages(project, f"train {name}")
    curve = np.genfromtxt(project / "models" / name / "loss.csv", delimiter=",", names=True)
    assert curve["step"].tolist() == [2, 4]
    assert np.isfinite(curve["loss"]).all()
    assert (curve["grad_norm"] > 0).all()


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in OTHER_PROCESSES]


@pytest.mark.parametrize("name", [*UNETS, *SLOW, *OTHER_NETWORKS])
def test_presets_for_digits_are_trained_and_exported(project: Path, name: str):
    train_on_digits(project, name)
    stages(project, f"export {name}")
    check_parity(project, name)
    if name in OTHER_NETWORKS:  # U-Nets are evaluated in every other test
        stages(project, f"evaluate {name}")
        assert np.isfinite(read_json(project / "reports" / name / "metrics.json")["fid"])


def test_the_preset_of_the_bound_differs_in_its_objective_alone(project: Path):
    train_on_digits(project, "improved-ddpm-vlb")
    hybrid, vlb = PRESETS["improved-ddpm"], PRESETS["improved-ddpm-vlb"]
    assert {section for section in hybrid if hybrid[section] != vlb[section]} == {"objective"}


def waves(directory: Path) -> None:
    """Sines of random frequency and phase, two channels."""
    random = np.random.default_rng(0)
    angles = random.uniform(1, 3, (60, 2, 1)) * np.arange(16) + random.uniform(0, 6, (60, 2, 1))
    np.save(directory / "waves.npy", np.sin(angles) * [[1], [50]])


SLOW_VALUES = [pytest.param(name, marks=pytest.mark.slow) for name in ("linear-attention-1d", *SWISS_ROLLS[1:])]


@pytest.fixture(params=["swiss-roll", *SLOW_VALUES])
def values_project(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """A project of points or of sequences, its preset trained for a few steps, and the preset's name."""
    monkeypatch.chdir(tmp_path)
    waves(tmp_path)
    name = request.param
    write_params(tmp_path, shortened(name, **FOR_OTHERS[name]))
    stages(tmp_path, "fetch", "prepare", "fit-extractor", f"train {name}")
    return tmp_path, name


def test_points_and_sequences_through_every_stage(values_project: tuple[Path, str]):
    project, name = values_project
    stages(project, f"evaluate {name}", f"export {name}")
    report = project / "reports" / name
    metrics, protocol = read_json(report / "metrics.json"), read_json(report / "protocol.json")
    assert metrics["wasserstein_low"] < metrics["wasserstein"] < metrics["wasserstein_high"]
    assert metrics["wasserstein_floor"] > 0
    assert metrics["mmd"] > metrics["mmd_floor"]  # four steps make no model
    assert (protocol["extractor"], metrics["protocol"]) == ("coordinates", protocol["id"])
    pictures = {picture: (report / picture).read_bytes() for picture in ("samples.png", "denoising.png")}
    stages(project, f"evaluate {name}")
    assert all((report / picture).read_bytes() == before for picture, before in pictures.items())
    check_parity(project, name)

    sampler = load_params().variant(name).sampling.sampler
    stages(project, f"compare {name} deploy/{name} --steps 2,4 --sampler {sampler}")
    measured = read_json(project / "comparison/comparison.json")["over_steps"]
    assert measured["figure"] == "wasserstein"
    # By its own sampler in four steps, at the usual spacing, and of another seed than the evaluation's.
    params, count = load_params(), TINY_PARAMS["evaluation"]["samples"]
    seed, spacing = seeds_of(params.seed).comparison, SamplingConfig().spacing
    drawn = ddpm.load(project / "models" / name).sample(count, seed=seed, spacing=spacing)
    scores = scores_of(params, PreparedData.open(project / "prepared"), project, torch.device("cpu"))
    for curve in measured["curves"].values():
        assert curve[1] == [4, pytest.approx(scores.distance([drawn], count), rel=1e-3)]

    kind = ddpm.load(project / "models" / name).codec
    for model in (f"models/{name}", f"deploy/{name}"):
        stages(project, f"sample {model} --n 5 --out samples.npz", f"sample {model} --n 5 --out samples.png")
        drawn = np.load("samples.npz")[kind.name]
        assert drawn.shape == (5, *kind.shape)
        # Clipped to −1..1, and so within the data's range.
        low, high = (np.reshape(end, (-1, *[1] * (drawn.ndim - 2))) for end in (kind.low, kind.high))
        assert ((drawn >= low - 1e-3) & (drawn <= high + 1e-3)).all()


def data_of(name: str) -> str:
    return "points" if name in SWISS_ROLLS else "sequences"


def test_what_does_not_fit_the_data_is_refused(values_project: tuple[Path, str], capsys: pytest.CaptureFixture[str]):
    project, name = values_project
    right = yaml.safe_load((project / "params.yaml").read_text())

    def refused(command: str, words: str, section: str | None = None, **changes) -> None:
        wrong = copy.deepcopy(right)
        if section is not None:
            target = wrong if section in wrong else wrong["models"][name]
            target[section] = {**target[section], **changes} if "kind" not in changes else changes
        write_params(project, wrong)
        assert cli.main(command.split()) == 2
        assert words in capsys.readouterr().err

    refused(f"train {name}", "horizontal_flip is for images", "training", horizontal_flip=True)
    refused("fit-extractor", "extractor.kind is `rotation`, which is for images", "extractor", kind="rotation")
    refused(f"sample models/{name} --out folder", "a directory is for images")
    other = "mlp" if name == "linear-attention-1d" else "linear-attention"
    refused(f"train {name}", f"the data are {data_of(name)}", "network", kind=other)
    assert not (project / "folder").exists()


def test_the_swiss_roll_is_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A few hundred steps come half the way from noise to the floor."""
    monkeypatch.chdir(tmp_path)
    params = shortened("swiss-roll", source="swiss-roll")
    params["evaluation"]["samples"] = 500
    params["models"]["swiss-roll"]["sampling"]["steps"] = 50
    params["models"]["swiss-roll"]["training"] |= {"steps": 300, "batch_size": 256, "warmup_steps": 20}
    write_params(tmp_path, params)
    stages(tmp_path, "fetch", "prepare", "fit-extractor", "train swiss-roll", "evaluate swiss-roll")
    metrics = read_json(tmp_path / "reports/swiss-roll/metrics.json")
    # Standard normal noise clipped to the data's square is at 0.36.
    assert metrics["wasserstein_floor"] < metrics["wasserstein"] < 0.18
