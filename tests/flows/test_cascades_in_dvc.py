"""The real graph and the real flow with a cascade of digits: trained apart, composed, and from then on one model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from test_clones import clone, run, source  # noqa: F401  (source is a fixture)
from test_guides_in_dvc import pipeline, ran  # noqa: F401  (pipeline is a fixture)
from test_whole import retrain
from tiny import cascade_params, write_params

from ddpm import tracking
from ddpm.files import read_json

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]


def short(**glide) -> dict:
    """The cascade of digits, trained for some steps."""
    params = cascade_params(**glide)
    for model in params["models"].values():
        model["training"] |= {"steps": 6, "checkpoint_every": 5, "log_every": 2}
    return params


def test_each_link_is_trained_once_and_a_change_reruns_what_comes_of_it(pipeline: Path):  # noqa: F811
    write_params(pipeline, short())
    first = ran(pipeline)
    for earlier, later in (
        ("train-base@glide", "compose@glide"),
        ("train-upsampler@glide", "compose@glide"),
        ("compose@glide", "evaluate-cascade@glide"),
        ("compose@glide", "export-cascade@glide"),
    ):
        assert first.index(earlier) < first.index(later)
    assert not {stage for stage in ran(pipeline) if stage != "fetch"}

    write_params(pipeline, short(low_noise=0.0))
    assert set(ran(pipeline)) - {"fetch"} == {"compose@glide", "evaluate-cascade@glide", "export-cascade@glide"}
    changed = short(low_noise=0.0)
    changed["models"]["small"]["training"]["learning_rate"] = 1e-3
    write_params(pipeline, changed)
    assert "train-upsampler@glide" not in set(ran(pipeline))
    assert read_json(pipeline / "deploy" / "glide" / "parity.json")["passed"]


def test_without_cascades_the_graph_has_no_stage_of_them(pipeline: Path):  # noqa: F811
    assert not [stage for stage in ran(pipeline, "prepare") if "cascade" in stage]


def test_the_flow_registers_a_cascade_as_one_version_and_it_is_drawn_with_by_its_uri(
    source: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    project = clone(source, tmp_path / "project")
    write_params(project, short())
    said = retrain(project)
    assert "models:/ddpm-digits/1 (challenger, champion)" in said
    assert "deploy/glide/cascade.json" in said
    monkeypatch.chdir(project)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    found = tracking.find("glide")
    client = tracking.load_mlflow().MlflowClient()
    version = client.get_model_version(found.model, str(found.version))
    facts = json.loads(Path("models/glide/cascade.json").read_text())
    for link in facts["links"].values():
        assert f"{link['variant']} {link['sha256'][:12]}" in version.tags["links"]
    assert {"base.training.steps", "upsampler.condition.low.side", "protocol.upsampler.steps"} <= client.get_run(
        found.run_id
    ).data.params.keys()

    run(project, "ddpm", "sample", "models:/ddpm-digits@champion", "--n", "3", "--label", "4", "--out", "a.npz")
    run(project, "ddpm", "sample", "deploy/glide", "--n", "3", "--label", "4", "--out", "b.npz")
    np.testing.assert_array_equal(np.load("a.npz")["images"], np.load("b.npz")["images"])
    run(project, "ddpm", "measure", "models:/ddpm-digits@champion", "--out", "figures.json")
    assert read_json(Path("figures.json"))["protocol"] == read_json(Path("reports/glide/protocol.json"))
    assert "Nothing has changed since models:/ddpm-digits/1: nothing to do" in retrain(project)

    # A new version of one link is a new version of the cascade; a rollback brings both links back.
    changed = short()
    changed["models"]["small"]["training"]["learning_rate"] = 1e-3
    write_params(project, changed)
    retrain(project)
    run(project, "ddpm", "promote", "--to", "2", "--reason", "test")
    run(project, "ddpm", "rollback", "--reason", "test")
    run(project, "ddpm", "sample", "models:/ddpm-digits@champion", "--n", "3", "--label", "4", "--out", "c.npz")
    np.testing.assert_array_equal(np.load("a.npz")["images"], np.load("c.npz")["images"])
