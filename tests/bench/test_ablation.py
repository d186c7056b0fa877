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


@pytest.mark.slow
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
    digits, fashion = results["guidance"]
    for claim in (*results["claims"], *digits["claims"]):
        assert claim["claim"] in page
        assert claim["verdict"] in page
    settings = {(row["guide"], row["scale"]): row["figures"] for row in digits["settings"] if not row["interval"]}
    assert {guide for guide, _ in settings} == {"itself", "classifier", "weaker model"}
    assert "class_accuracy" in settings["itself", 1]
    # Of scale 0 the classifier has no part in the images; that it asked for a class is still known.
    assert settings["classifier", 0]["fid"] != settings["classifier", 2]["fid"]
    assert digits["protocol"]["seeds"] == [0, 1]
    assert "no trained model conditional-fashion" in fashion["left_out"]
    assert fashion["left_out"] in page

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

    # Guidance alone, of a project with a trained model of that name; the rest is as it was written.
    shutil.copytree(folder, project / "fashion")
    (project / "fashion/models/conditional").rename(project / "fashion/models/conditional-fashion")
    assert ablation.main(["--quick", "--guidance", "--fashion", "fashion"]) == 0
    more = json.loads((folder / "ablation.json").read_text())
    assert {key: value for key, value in more.items() if key != "guidance"} == {
        key: value for key, value in results.items() if key != "guidance"
    }
    other = more["guidance"][1]
    assert [row["figures"] for row in other["settings"]] == [
        row["figures"] for row in digits["settings"] if row["guide"] == "itself"
    ]


def test_guidance_alone_needs_the_other_results(project, capsys):
    assert ablation.main(["--quick", "--guidance"]) == 2
    assert "ablation.json is missing or damaged; leave --guidance out" in capsys.readouterr().err


def test_params_without_the_preset_are_refused(project, capsys):
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("\n  ddpm:\n", "\n  other:\n").replace("[ddpm]", "[other]"))
    assert ablation.main(["--quick"]) == 2
    assert "'ddpm'" in capsys.readouterr().err
