"""What was made before models had conditions still loads and draws the same: tests/fixtures/format-1.tar.xz.

It holds what commit eb55bdc left of a project: model directories of three kinds, deploy directories, a registered
version in an MLflow store, a checkpoint of an unfinished training, and samples of all of them.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import ddpm
from ddpm import tracking
from ddpm.config.params import load_params
from ddpm.config.sampling import SamplingConfig
from ddpm.data.store import PreparedData
from ddpm.diffusion.plans import COLUMNS
from ddpm.export.files import NAMED_PLANS
from ddpm.stages.fetch import fetch
from ddpm.stages.fingerprint import decisions, fingerprint
from ddpm.stages.prepare import prepare
from ddpm.stages.train import data_facts, hashes_of, train_variant

ARCHIVE = Path(__file__).parents[1] / "fixtures/format-1.tar.xz"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("format-1")
    with tarfile.open(ARCHIVE) as packed:
        packed.extractall(root, filter="data")
    return root


@pytest.fixture
def project(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(archive, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def expected(root: Path, name: str) -> np.ndarray:
    return np.load(root / f"expected/{name}.npz")["images"].astype(int)


@pytest.mark.parametrize("name", ["tiny", "learned", "vae"])
def test_a_model_directory_draws_the_same_images(project: Path, name: str):
    np.testing.assert_allclose(
        ddpm.load(f"models/{name}").sample(4, seed=5), expected(project, f"model-{name}"), atol=1
    )


def test_by_another_sampler_too(project: Path):
    drawn = ddpm.load("models/tiny").sample(4, seed=5, sampler="dpmpp_2m_sde", steps=10)
    np.testing.assert_allclose(drawn, expected(project, "model-tiny-sde"), atol=1)


@pytest.mark.parametrize("name", ["tiny", "learned"])
def test_a_deploy_directory_draws_the_same_images(project: Path, name: str):
    from ddpm.deploy.runtime import Sampler

    for in_graph in (False, True):
        drawn = Sampler(f"deploy/{name}", in_graph=in_graph).sample(4, seed=5)
        np.testing.assert_allclose(drawn, expected(project, f"deploy-{name}"), atol=1)


@pytest.mark.parametrize("name", ["tiny", "learned"])
def test_the_plans_that_were_exported_are_todays(project: Path, name: str):
    """Column by column; later columns follow those."""
    exported = onnx.load(f"deploy/{name}/sampler.onnx", load_external_data=False)
    said = {entry.key: entry.value for entry in exported.metadata_props}
    columns, plans = json.loads(said["columns"]), json.loads(said["plans"])
    assert columns == list(COLUMNS[: len(columns)])
    model = ddpm.load(f"models/{name}").sampled_by(SamplingConfig(**json.loads(said["sampling"])))
    for label, stored in plans.items():
        plan = model.plan(**NAMED_PLANS.get(label, {}))
        assert plan.told.tolist() == stored["timesteps"]
        np.testing.assert_allclose(plan.table[:, : len(columns)], stored["table"], rtol=1e-7, atol=1e-9)


def test_a_registered_version_draws_the_same_images_and_becomes_champion(project: Path):
    assert tracking.promote_by_hand("ddpm-digits", 1, "by test", policy=load_params().promotion)
    drawn = ddpm.load("models:/ddpm-digits@champion").sample(4, seed=5)
    np.testing.assert_allclose(drawn, expected(project, "deploy-tiny"), atol=1)


def test_a_checkpoint_continues_to_the_same_weights(project: Path, capsys: pytest.CaptureFixture[str]):
    params = load_params()
    fetch(params)
    prepare(params)
    data, variant = PreparedData.open(project / "prepared"), params.variant("tiny")
    # The code has changed since, and with it the name under which a training looks for its checkpoints.
    decided = decisions(variant, params.seed, hashes_of(data, data_facts(data, variant)), "fp32", torch.device("cpu"))
    (states,) = (path for path in (project / ".ddpm/training/tiny").iterdir() if path.is_dir())
    states.rename(states.with_name(fingerprint(decided)[:16]))
    before = ddpm.load("models/tiny").network.state_dict()
    train_variant(params, "tiny")
    assert "continuing tiny from step 15 of 20" in capsys.readouterr().out
    for name, tensor in ddpm.load("models/tiny").network.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=1e-4, atol=1e-5)


def test_an_unconditional_training_from_its_start_ends_in_the_same_weights(project: Path):
    """On the machine and the versions that made the fixture in the same bits. Other noise, timesteps or batches would
    show in the second digit.
    """
    params = load_params()
    fetch(params)
    prepare(params)
    before = ddpm.load("models/tiny").network.state_dict()
    shutil.rmtree(project / ".ddpm/training", ignore_errors=True)
    train_variant(params, "tiny")
    for name, tensor in ddpm.load("models/tiny").network.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=1e-4, atol=1e-5)
