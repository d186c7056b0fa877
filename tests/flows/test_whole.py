"""The whole of it: a fresh clone, real stages on tiny data, `python -m flows.retrain` as `make demo` calls it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_clones import clone, run, source  # noqa: F401  (source is a fixture)
from tiny import TINY_PARAMS, write_params

from ddpm import tracking
from ddpm.files import read_json


def retrain(where: Path) -> str:
    return run_flow(where, "-m", "flows.retrain")


def run_flow(where: Path, *arguments: str) -> str:
    """Run Python with a server of Prefect's own, as nothing in the environment names another."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=where,
        env={**clean, "PYTHONPATH": str(where)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_raw_images_to_a_champion_and_nothing_the_second_time(source, tmp_path, monkeypatch):  # noqa: F811
    project = clone(source, tmp_path / "project")
    said = retrain(project)
    assert "models:/ddpm-digits/1 (challenger, champion)" in said
    assert "deploy/tiny/denoiser.onnx" in said
    assert "make serve" in said

    monkeypatch.chdir(project)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    found = tracking.find("tiny")
    client = tracking.load_mlflow().MlflowClient()
    logged = client.get_run(found.run_id)
    assert logged.data.metrics.keys() >= {
        "eval/fid",
        "eval/detail/fid_floor",
        "eval/inception_score",
        "train/loss",
        "train/steps_per_second",
    }

    run(project, "ddpm", "sample", "models:/ddpm-digits@champion", "--n", "5", "--seed", "0", "--out", "a.npz")
    run(project, "ddpm", "sample", "deploy/tiny", "--n", "5", "--seed", "0", "--out", "b.npz")
    np.testing.assert_array_equal(np.load("a.npz")["images"], np.load("b.npz")["images"])

    assert "Nothing has changed since models:/ddpm-digits/1: nothing to do" in retrain(project)
    assert len(client.search_runs([logged.info.experiment_id])) == 1


WATCH = "from flows.monitor import monitor; print('in the end:', monitor(return_state=True).message)"


@pytest.mark.slow
def test_under_another_protocol_the_champion_is_measured_again_ranked_and_watched(source, tmp_path, monkeypatch):  # noqa: F811
    project = clone(source, tmp_path / "project")
    retrain(project)
    monkeypatch.chdir(project)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    healthy = "in the end: models:/ddpm-digits/1: files and samples are those on record; figures are those on record"
    assert healthy in run_flow(project, "-c", WATCH)

    tiny = TINY_PARAMS["models"]["tiny"]
    more = {**tiny, "training": {**tiny["training"], "steps": 120}}
    write_params(project, {**TINY_PARAMS, "evaluation": {"samples": 128, "splits": 2}, "models": {"tiny": more}})
    retrain(project)
    version = tracking.find("tiny")
    assert version.version == 2
    assert "of version 1" in version.reason
    assert "not ranked" not in version.reason
    client = tracking.load_mlflow().MlflowClient()
    [measured] = [
        value for tag, value in client.get_model_version("ddpm-digits", "1").tags.items() if "measured" in tag
    ]
    assert client.get_run(measured).data.metrics["eval/detail/samples"] == 128

    both = [f"models:/ddpm-digits/{number}" for number in (1, 2)]
    run(project, "ddpm", "compare", *both, "--steps", "2", "--samples", "64", "--rank", "--out", "page")
    compared = read_json(project / "page" / "comparison.json")
    assert compared["ranked"]
    assert [model["metrics"]["samples"] for model in compared["models"]] == [128, 128]
    assert len(compared["protocols"]) == 1

    path = tracking.resolve("models:/ddpm-digits@champion") / "denoiser.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 64
    path.write_bytes(content)
    assert "damaged: denoiser.onnx is not the file that was registered" in run_flow(project, "-c", WATCH)
