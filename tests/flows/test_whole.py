"""The whole of it: a fresh clone, real stages on tiny data, `python -m flows.retrain` as `make demo` calls it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from test_clones import clone, run, source  # noqa: F401  (source is a fixture)

from ddpm import tracking


def retrain(where: Path) -> str:
    """Run the flow with a server of its own, as nothing in the environment names another."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    done = subprocess.run(
        [sys.executable, "-m", "flows.retrain"],
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
        "eval/fid_floor",
        "eval/inception_score",
        "train/loss",
        "train/steps_per_second",
    }

    run(project, "ddpm", "sample", "models:/ddpm-digits@champion", "--n", "5", "--seed", "0", "--out", "a.npz")
    run(project, "ddpm", "sample", "deploy/tiny", "--n", "5", "--seed", "0", "--out", "b.npz")
    np.testing.assert_array_equal(np.load("a.npz")["images"], np.load("b.npz")["images"])

    assert "Nothing has changed since models:/ddpm-digits/1: nothing to do" in retrain(project)
    assert len(client.search_runs([logged.info.experiment_id])) == 1
