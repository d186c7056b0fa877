"""The study of captions, cascades and inpainting, from end to end at a scale of seconds, and again from its cells."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import text
from bench.claims import Estimate
from bench.text_page import markdown
from ddpm.config.params import load_params
from ddpm.stages.compose import compose
from ddpm.stages.extractor import fit_extractor
from ddpm.stages.fetch import fetch
from ddpm.stages.prepare import prepare
from ddpm.stages.train import train_variant
from flows import demo_text

ROOT = Path(__file__).parents[2]


def estimate_of(value: float, spread: float = 0.01) -> Estimate:
    return Estimate(value, value + spread * np.array([-1.0, 1.0, -1.0, 1.0]))


def test_trained_inpainting_is_held_against_both_ways_without_training():
    filled = {
        "trained": {"fid": estimate_of(1.0), "rmse": estimate_of(30.0)},
        "replace": {"fid": estimate_of(2.0), "rmse": estimate_of(40.0)},
        "repaint": {"fid": estimate_of(1.5), "rmse": estimate_of(20.0)},
    }
    real, near = text.filling_claims(filled)
    assert real.verdict == "holds"
    assert [comparison.outcome for comparison in near.comparisons] == ["yes", "no"]


def quick(params: Any, others: Sequence[str]) -> Any:
    """The demo's parameters and other presets of the study, trained for some steps: enough that samples differ."""
    names = [*params.trained, *others]
    models = {}
    for name in names:
        config = params.variant(name)
        training = config.training.model_copy(update={"steps": 3, "batch_size": 8, "warmup_steps": 0, "log_every": 1})
        models[name] = config.model_copy(update={"training": training})
    extractor = params.extractor.model_copy(update={"steps": 5})
    return params.model_copy(update={"models": models, "extractor": extractor})


@pytest.mark.slow
def test_the_study_runs_to_its_page_and_draws_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    project = demo_text.make_project(tmp_path, copy.deepcopy(demo_text.DEMO))
    params = quick(load_params(project / "params.yaml"), text.TRAINED)
    with contextlib.chdir(project):
        for stage in (fetch, prepare, fit_extractor):
            stage(params)
        for name in params.models:
            train_variant(params, name)
        compose(params, text.CASCADE)
    results = text.TextStudy(params, project, text.QUICK).results()
    assert {row["setting"] for row in results["inpainting"]} == {"trained", "replace", "repaint"}
    for row in results["inpainting"]:
        assert row["figures"]["known_error"]["value"] == 0
        assert row["figures"]["rmse"]["value"] > 0
    told = [row for row in results["settings"] if "held_out_retrieval_5_pixels" in row["figures"]]
    assert len(told) == len(results["settings"]) - 2, "all but those of the model without captions"
    page = markdown(results)
    assert all(claim["claim"] in page for claim in results["claims"])
    assert "CC BY-SA 4.0" in page

    monkeypatch.setattr("ddpm.drawer.Drawer.draw", lambda *_, **__: pytest.fail("drawn again"))
    assert text.TextStudy(params, project, text.QUICK).results() == results
