"""A conditional model draws the same images whatever the batch, trained and exported, with and without guidance."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from untrained import ONE_LEVEL

import ddpm
from ddpm.cli.main import main
from ddpm.deploy.runtime import Sampler
from ddpm.diffusion.plans import SAMPLERS
from ddpm.drawer import Drawer


@pytest.fixture(scope="module")
def exported(prepared_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conditional model that learns its variance, trained for some steps and exported."""
    directory = tmp_path_factory.mktemp("conditional") / "project"
    shutil.copytree(prepared_template, directory)
    params = yaml.safe_load((directory / "params.yaml").read_text())
    params["models"]["tiny"] |= {
        "network": ONE_LEVEL,
        "condition": {"label": {"drop": 0.2}},
        "process": {"timesteps": 50, "variance": "learned_range"},
        "objective": {"loss": "hybrid"},
        "sampling": {"sampler": "ancestral", "steps": 10, "guidance_scale": 2.0},
    }
    (directory / "params.yaml").write_text(yaml.safe_dump(params))
    with contextlib.chdir(directory):
        assert main(["train", "tiny"]) == 0
        assert main(["export", "tiny"]) == 0
    return directory


@pytest.fixture(scope="module")
def drawers(exported: Path) -> dict[str, Drawer]:
    with contextlib.chdir(exported):
        return {
            "torch": ddpm.load("models/tiny"),
            "denoiser.onnx": Sampler("deploy/tiny", in_graph=False),
            "sampler.onnx": Sampler("deploy/tiny", in_graph=True),
        }


@pytest.mark.parametrize("options", [{}, {"label": "7"}, {"label": [0, 1, 2]}, {"label": 3, "guidance_scale": 1.0}])
@pytest.mark.parametrize("name", ["torch", "denoiser.onnx", "sampler.onnx"])
def test_the_same_images_whatever_the_batch(drawers: dict[str, Drawer], name: str, options: dict):
    one, several = (drawers[name].sample(7, seed=4, batch_size=size, **options).astype(int) for size in (7, 3))
    assert np.abs(one - several).max() <= 1


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
@pytest.mark.parametrize("options", [{"guidance_scale": 3.0}, {"guidance_scale": 3.0, "guidance_interval": (0.2, 0.7)}])
def test_real_networks_agree_in_all_executors(drawers: dict[str, Drawer], sampler: str, options: dict):
    """In levels of 255. The label decides, so that a wrong one would show."""
    asked = {"sampler": sampler, "steps": 10, "seed": 2, "label": [1, 8], **options}
    ours, *others = (drawer.sample(4, **asked).astype(int) for drawer in drawers.values())
    for theirs in others:
        assert np.abs(ours - theirs).max() <= 1
    other_label = drawers["torch"].sample(4, **(asked | {"label": [8, 1]})).astype(int)
    assert np.abs(ours - other_label).max() > 10


def test_an_image_keeps_its_noise_whatever_its_label(drawers: dict[str, Drawer]):
    """Scale 0 ignores the label, so the images are the same ones."""
    one, other = (drawers["torch"].sample(3, guidance_scale=0.0, sampler="ddim", label=label) for label in (1, 2))
    assert np.abs(one.astype(int) - other).max() <= 1


def test_what_is_not_asked_for_is_drawn_and_the_models_own_plan_is_guided(drawers: dict[str, Drawer]):
    model, sampler = drawers["torch"], drawers["denoiser.onnx"]
    counts = np.array(model.columns[0].counts)
    assert counts.sum() == 1438
    assert sampler.columns == model.columns
    given = model.given(2000, seed=1)["label"]
    np.testing.assert_allclose(np.bincount(given, minlength=10) / 2000, counts / counts.sum(), atol=0.04)
    np.testing.assert_array_equal(given[5:9], sampler.given(4, seed=1, first=5)["label"])
    # The plan is the project's in the deploy directory alone.
    assert sampler.plan().column("guidance").tolist() == [1.0] * 10
    assert sampler.plan().evaluations == 20
    assert sampler.plan(guidance_scale=1.0).evaluations == 10


def test_a_plan_of_the_same_scale_has_the_weights_that_its_interval_says(drawers: dict[str, Drawer]):
    plan = drawers["torch"].plan(steps=10, guidance_scale=3.0, guidance_interval=(0.3, 0.6))
    place = (plan.timesteps + 1) / 50
    np.testing.assert_array_equal(plan.column("guidance"), np.where((place >= 0.3) & (place <= 0.6), 2.0, 0.0))
    assert plan.evaluations == 10 + np.count_nonzero(plan.column("guidance"))
