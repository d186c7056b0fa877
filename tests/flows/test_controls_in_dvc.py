"""The real graph with a control: its base comes first, and a new base trains the control anew."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError
from test_guides_in_dvc import pipeline, ran  # noqa: F401
from test_latents_in_dvc import params as of_latents
from tiny import TINY_PARAMS, write_params

from ddpm.config.params import Params
from ddpm.files import read_json, sha256_of
from flows import retrain


def described(steps: int = 3, **changes) -> dict:
    """A model, a control of it, and another model."""
    tiny = deepcopy(TINY_PARAMS["models"]["tiny"])
    tiny["training"] |= {"steps": 3, "checkpoint_every": 2}
    base = {**deepcopy(tiny), "training": {**tiny["training"], "steps": steps}}
    edges = {**deepcopy(tiny), "condition": {"control": {"of": "models/base", "hint": "silhouette", "widths": [4]}}}
    models = {"base": base, "other": deepcopy(tiny), "edges": edges}
    controls = {"edges": {"of": "base"}}
    return {**TINY_PARAMS, "variants": ["base", "other"], "controls": controls, "models": models, **changes}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_base_is_trained_first_and_a_new_one_trains_its_control(pipeline: Path):  # noqa: F811
    write_params(pipeline, described())
    targets = ("evaluate-control@edges", "export-control@edges", "evaluate@other")
    first = ran(pipeline, *targets)
    assert first.index("train@base") < first.index("train-control@edges") < first.index("evaluate-control@edges")
    facts = read_json(pipeline / "models/edges/model.json")["training"]["control_of"]
    assert facts["sha256"] == sha256_of(pipeline / "models/base/model.safetensors")
    figures = read_json(pipeline / "reports/edges/metrics.json")
    assert 0 <= figures["control_silhouette"] <= 1
    assert read_json(pipeline / "reports/edges/protocol.json")["hints"] == "validation, silhouette"
    assert set(ran(pipeline, *targets)) <= {"fetch"}

    write_params(pipeline, described(4))
    again = ran(pipeline, *targets)
    assert {"train@base", "train-control@edges", "evaluate-control@edges", "export-control@edges"} <= set(again)
    assert not {"train@other", "evaluate@other"} & set(again)
    facts = read_json(pipeline / "models/edges/model.json")["training"]["control_of"]
    assert facts["sha256"] == sha256_of(pipeline / "models/base/model.safetensors")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"controls": {"edges": {"of": "nothing"}}}, "controls.edges.of is 'nothing', but `models` has only"),
        (
            {"controls": {"other": {"of": "base"}}, "variants": ["base"]},
            "`controls` names other, which needs `condition",
        ),
        ({"controls": {"edges": {"of": "other"}}}, "controls.edges.of is other, and models.edges.condition.control.of"),
        ({"variants": ["other"]}, "controls.edges.of is base, which the pipeline does not train"),
        ({"variants": ["base", "edges"]}, "`controls` names edges, which is in `variants` too"),
        ({"variants": ["base", "edges"], "controls": {}}, "models.edges controls models/base, which has to be trained"),
    ],
)
def test_what_does_not_fit_is_said(changes, words):
    Params.model_validate(described())
    with pytest.raises(ValidationError, match=re.escape(words)):
        Params.model_validate(described(**changes))


def test_a_control_of_another_architecture_is_said_before_anything_is_trained():
    params = described()
    params["models"]["edges"]["network"] = {**params["models"]["edges"]["network"], "width": 16}
    with pytest.raises(ValidationError, match=re.escape("models.edges.network.width is 16, and 8 of models.base")):
        Params.model_validate(params)


@pytest.mark.parametrize(
    ("changed", "expected"), [("train-latent@small", True), ("train-control@steered", True), ("train@small", False)]
)
def test_the_flow_looks_at_the_stages_of_a_base_of_latents(changed, expected, monkeypatch):
    monkeypatch.setattr(retrain.dvc, "changed_stages", lambda: {changed})
    assert retrain._has_changed(Params.model_validate(of_latents()), ["steered"]) == expected


def test_the_flow_trains_a_base_of_latents_after_its_latents(monkeypatch):
    submitted = []
    monkeypatch.setattr(
        retrain.tasks.train_latent, "submit", lambda name, wait_for: submitted.append((name, wait_for)) or name
    )
    found = retrain._bases(Params.model_validate(of_latents()), ["steered"], "extractor", {"squeeze": ["latents"]})
    assert found == {"small": "small"}
    assert submitted == [("small", ["latents"])]


@pytest.mark.slow
def test_a_model_without_controls_needs_the_key_alone(tmp_path: Path):
    """DVC reads it for the graph."""
    shutil.copy(Path(__file__).parents[2] / "dvc.yaml", tmp_path)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q", "--no-scm"], cwd=tmp_path, check=True)
    write_params(tmp_path, described(controls={}))
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "stage", "list", "--name-only"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert not [name for name in done.stdout.split() if "-control@" in name]
    assert yaml.safe_load((tmp_path / "params.yaml").read_text())["controls"] == {}
