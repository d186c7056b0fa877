"""`ddpm status`: what there is, whatever is missing."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from finished import VARIANT, empty_store, write_outputs
from tiny import TINY_PARAMS, write_params

from ddpm import tracking
from ddpm.cli import main
from ddpm.config.params import load_params
from ddpm.files import write_json
from ddpm.stages import status as status_module
from ddpm.stages.status import lines, status
from ddpm.tracking.overview import _of_server

STAGES = ["fetch", "prepare", "fit-extractor", "train@tiny", "evaluate@tiny", "export@tiny"]


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with params.yaml and nothing else."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path, TINY_PARAMS)
    return tmp_path


def test_an_empty_folder_has_its_status_and_stays_empty(bare, capsys):
    assert main(["status", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["stages"] == dict.fromkeys(STAGES, "not run")
    assert (found["asked"], found["champion"], found["versions"], found["disk"]) == ("files", None, [], {})
    assert [path.name for path in bare.iterdir()] == ["params.yaml"]


def test_stages_figures_versions_champion_and_unfinished_trainings(bare, tmp_path_factory, capsys):
    shutil.copytree(empty_store(tmp_path_factory) / "mlflow", bare / "mlflow")
    write_outputs(bare)
    protocol = Path(f"reports/{VARIANT}/protocol.json")
    write_json(protocol, {**json.loads(protocol.read_text()), "extractor": "classifier"})
    tracking.register(VARIANT)
    tracking.promote(VARIANT)
    step = Path(f".ddpm/training/{VARIANT}/abcdef/step-000000012")
    step.mkdir(parents=True)
    found = status(load_params())
    assert found["stages"] == {**dict.fromkeys(STAGES, "done"), "fetch": "not run", "fit-extractor": "not run"}
    assert found["champion"] == "models:/ddpm-dots/1"
    (version,) = found["versions"]
    assert (version["aliases"], version["figure"], version["value"]) == (
        ["challenger", "champion"],
        "FID (small CNN)",
        20.0,
    )
    # The project's own store is read without MLflow, and says the same.
    assert _of_server(tracking.load_mlflow().MlflowClient()) == tracking.registered_versions()
    assert found["models"][VARIANT]["figure"] == "FID (small CNN)"
    assert found["unfinished"] == [{"variant": VARIANT, "step": 12, "steps": 40, "running": False}]
    assert found["disk"]["mlflow"] > 100_000
    text = "\n".join(lines(found))
    assert "models:/ddpm-dots/1 (challenger, champion)  tiny  FID (small CNN) 20" in text
    assert "tiny  training at step 12 of 40, stopped; `ddpm train tiny` continues it" in text
    # The state of the training that made the model is no unfinished one.
    step.parent.rename(step.parent.with_name("f"))
    assert status(load_params())["unfinished"] == []


def test_a_store_that_cannot_be_read_is_named_and_the_rest_is_told(bare):
    Path("mlflow").mkdir()
    Path("mlflow/mlflow.db").write_bytes(b"no database" * 500)
    found = status(load_params())
    assert "damaged" in found["store"]["problem"]
    assert any("damaged" in line for line in lines(found))
    assert list(found["stages"]) == STAGES


PIPELINE = """
stages:
  prepare:
    cmd: mkdir -p prepared && cp source prepared/manifest.json
    deps: [source]
    params: [seed]
    outs: [prepared]
"""


def test_dvc_is_asked_again_only_when_a_file_has_changed(bare, monkeypatch, capsys):
    def dvc(*arguments: str) -> None:
        environment = {**os.environ, "DO_NOT_TRACK": "1"}
        subprocess.run([sys.executable, "-m", "dvc", *arguments, "--quiet"], env=environment, check=True)

    def prepared() -> str:
        assert main(["status", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["asked"] == "dvc"
        return found["stages"]["prepare"]

    asked: list[object] = []

    def counted(*arguments, **options):
        asked.append(arguments)
        return run(*arguments, **options)

    run = subprocess.run
    monkeypatch.setattr(status_module.subprocess, "run", counted)
    dvc("init", "--no-scm")
    Path("dvc.yaml").write_text(PIPELINE)
    Path("source").write_text("{}")
    dvc("repro")
    asked.clear()
    assert (prepared(), prepared(), len(asked)) == ("up to date", "up to date", 1)
    Path("source").write_text("[]")
    assert (prepared(), prepared(), len(asked)) == ("changed", "changed", 2)
    Path("source").write_text("{}")
    write_params(bare, {**TINY_PARAMS, "seed": 7})
    assert (prepared(), len(asked)) == ("changed", 3)
    write_params(bare, TINY_PARAMS)
    assert (prepared(), len(asked)) == ("up to date", 4)
    Path("prepared/manifest.json").write_text("an output that somebody edited")
    assert (prepared(), len(asked)) == ("changed", 5)
    Path(".ddpm/status.json").write_text("damaged")
    assert (prepared(), len(asked)) == ("changed", 6)
