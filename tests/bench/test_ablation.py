"""The ablation from end to end, at a scale of seconds, and again from its cells."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pytest

from bench import ablation
from ddpm import tracking

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A folder with the project's own params.yaml and an MLflow store of its own."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    return tmp_path


def test_the_study_runs_to_its_page_and_does_nothing_twice(project, capsys):
    assert ablation.main(["--quick"]) == 0
    folder = project / ablation.QUICK.folder
    results = json.loads((folder / "ablation.json").read_text())
    page = (folder / "ablation.md").read_text()

    grid = {(row["spacing"], row["sampler"], row["steps"]): row["value"] for row in results["samplers"]}
    cells = itertools.product(ablation.SPACINGS, ablation.SAMPLERS, ablation.QUICK.grid_steps)
    assert set(grid) == set(cells)
    # DDIM with η = 1 is the posterior; it was sampled once for the two.
    assert all(grid["leading", "ddim-1", steps] == grid["leading", "ancestral-small", steps] for steps in (2, 5))
    assert grid["leading", "ddim-0", 5] != grid["leading", "ddim-0.5", 5] != grid["trailing", "ddim-0.5", 5]
    assert {(row["loss"], row["schedule"]) for row in results["fid"]} == {
        (loss, schedule) for loss in ("simple", "hybrid", "vlb") for schedule in ("linear", "cosine")
    }
    assert len(results["bits_per_dim"]) == 2 * (2 + 1 + 1) * 2  # schedules, variances of each loss, S
    for claim in results["claims"]:
        assert claim["claim"] in page
        assert claim["verdict"] in page

    run_id = capsys.readouterr().out.rpartition("/")[2].strip()
    client = tracking.load_mlflow().MlflowClient()
    logged = {metric.step: metric.value for metric in client.get_metric_history(run_id, "fid/leading/ddim-0")}
    assert logged == {steps: grid["leading", "ddim-0", steps] for steps in (2, 5)}
    assert client.get_run(run_id).data.params["timesteps"] == "10"
    assert {file.path for file in client.list_artifacts(run_id)} == {"ablation.json", "ablation.md"}

    before = {cell: cell.stat().st_mtime_ns for cell in (folder / "cells").iterdir()}
    lost = min(before)
    lost.unlink()
    assert ablation.main(["--quick"]) == 0
    assert json.loads((folder / "ablation.json").read_text()) == results
    again = {cell: cell.stat().st_mtime_ns for cell in (folder / "cells").iterdir()}
    assert [cell for cell in before if again[cell] != before[cell]] == [lost]


def test_params_without_the_preset_are_refused(project, capsys):
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("\n  ddpm:\n", "\n  other:\n").replace("[ddpm]", "[other]"))
    assert ablation.main(["--quick"]) == 2
    assert "'ddpm'" in capsys.readouterr().err
