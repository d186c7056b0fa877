"""The flow against a real Prefect server, with real DVC and MLflow; only the stages' commands are stand-ins."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from finished import empty_store, write_outputs
from graphs import write_graph
from prefect import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.states import State

from ddpm import tracking
from flows import pipeline
from flows.retrain import retrain

ROOT = Path(__file__).parents[2]
EVERY_STAGE = ["fetch", "prepare", "fit-extractor", "train@one", "evaluate@one", "export@one"]


pytestmark = pytest.mark.usefixtures("server")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch, store):
    monkeypatch.setattr(pipeline, "PAUSES", (0.0, 0.0))


def run(*variants: str) -> State:
    return retrain(list(variants) or None, return_state=True)


def runs_of_mlflow(graph: Path) -> list:
    client = tracking.load_mlflow(graph).MlflowClient()
    return client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])


@pytest.fixture(scope="module")
def after_one_run(server, empty_project, tmp_path_factory) -> Path:
    """A project in which the flow has run once, well; not to be written to."""
    root = tmp_path_factory.mktemp("once") / "project"
    shutil.copytree(empty_project, root)
    shutil.copytree(empty_store(tmp_path_factory) / "mlflow", root / "mlflow")
    write_graph(root)
    write_outputs(root / "finished")
    (root / "on" / "train@one").write_text("import os; open('seen', 'w').write(os.environ['MLFLOW_RUN_ID'])")
    with contextlib.chdir(root):
        state = run()
    assert state.is_completed(), state.message
    return root


@pytest.fixture
def again(after_one_run, tmp_path, monkeypatch) -> Path:
    """A copy of that project, and the current directory; no stage has been called in it yet."""
    root = tmp_path / "again"
    shutil.copytree(after_one_run, root)
    (root / "calls").unlink()
    monkeypatch.chdir(root)
    return root


def test_from_nothing_to_a_champion(after_one_run, monkeypatch):
    monkeypatch.chdir(after_one_run)
    calls = (after_one_run / "calls").read_text().split()
    assert sorted(calls) == sorted(EVERY_STAGE)
    assert calls.index("prepare") < calls.index("train@one") < calls.index("evaluate@one")
    version = tracking.find("one")
    assert version.aliases == ("challenger", "champion")
    assert "no champion to beat" in version.reason
    [mlflow_run] = runs_of_mlflow(after_one_run)
    assert mlflow_run.info.status == "FINISHED"
    assert mlflow_run.data.metrics["eval/fid"] == 20.0
    # The training knew the run that its model is registered with.
    assert (after_one_run / "seen").read_text() == version.run_id == mlflow_run.info.run_id


def test_the_pages_show_the_table_the_picture_and_the_way_to_mlflow(after_one_run, monkeypatch):
    monkeypatch.chdir(after_one_run)
    keys = ArtifactFilterKey(any_=["results", "samples-one", "mlflow-one", "promotion-one"])
    with get_client(sync_client=True) as client:
        shown = {found.key: found.data for found in client.read_artifacts(artifact_filter=ArtifactFilter(key=keys))}
    assert json.loads(shown["results"])[0]["FID"] == 20.0
    assert "data:image/png;base64," in shown["samples-one"]
    assert "champion: FID 20, and there was no champion to beat" in shown["promotion-one"]
    assert "| FID | 20 |  |" in shown["promotion-one"]
    assert tracking.find("one").run_id in shown["mlflow-one"]


def test_where_nothing_has_changed_nothing_is_done_and_it_is_said(again):
    state = run()
    assert state.is_completed()
    assert state.message == "Nothing has changed since models:/ddpm-dots/1"
    assert (again / "calls").read_text().split() == ["fetch"]
    assert len(runs_of_mlflow(again)) == 1
    assert state.result()[0].registration.version == 1


def test_a_run_that_was_stopped_before_its_promotion_is_finished_by_the_next(again):
    client = tracking.load_mlflow(again).MlflowClient()
    client.delete_registered_model_alias("ddpm-dots", "champion")
    client.delete_model_version_tag("ddpm-dots", "1", "promotion_reason")
    [result] = run().result()
    assert result.registration.aliases == ("challenger", "champion")
    assert (again / "calls").read_text().split() == ["fetch"]
    assert len(runs_of_mlflow(again)) == 1


@pytest.mark.slow
def test_what_another_process_is_running_is_waited_for_and_then_named(again):
    blocked = {str(again / "reports" / "one"): {"pid": os.getpid(), "cmd": "dvc repro"}}
    (again / ".dvc" / "tmp" / "rwlock").write_text(json.dumps({"read": {}, "write": blocked}))
    state = run()
    assert state.is_failed()
    assert re.fullmatch(r"evaluate@one: '.*/reports/one' is busy, it is being blocked by:", state.message)
    (again / ".dvc" / "tmp" / "rwlock").unlink()
    assert run().message == "Nothing has changed since models:/ddpm-dots/1"


@pytest.mark.slow
def test_new_data_makes_a_new_version_and_a_worse_one_is_no_champion(again):
    write_outputs(again / "finished", fid=30.0)
    (again / "content").write_text(json.dumps({"version": 2}))
    [result] = run().result()
    assert result.registration.version == 2
    assert result.registration.aliases == ("challenger",)
    assert "no lower FID: 30 against 20 of version 1" in result.registration.reason


def test_new_data_change_the_protocol_and_what_keeps_the_champion_from_being_measured_under_it_is_said(again):
    write_outputs(again / "finished", samples=500, fid=10.0)
    (again / "content").write_text(json.dumps({"version": 2}))
    [result] = run().result()
    assert result.registration.aliases == ("challenger",)
    assert "samples: 2000 → 500; version 1 could not be measured again: ddpm measure: " in result.registration.reason


def test_bad_input_fails_at_once_in_the_commands_words_and_leaves_no_run_open(graph, before, calls):
    before("train@one", "print('ddpm train: params.yaml: unknown key', file=sys.stderr); sys.exit(2)")
    state = run()
    assert state.is_failed()
    assert state.message == "train@one: ddpm train: params.yaml: unknown key"
    assert calls() == ["fetch", "prepare", *sorted({"fit-extractor", "train@one"} & set(calls()))]
    assert calls().count("train@one") == 1
    assert [r.info.status for r in runs_of_mlflow(graph)] == ["FAILED"]


def test_what_keeps_failing_outside_is_tried_three_times(before, calls):
    before("fetch", "print('ddpm fetch: no network'); sys.exit(75)")
    assert run().message == "fetch: ddpm fetch: no network"
    assert calls() == ["fetch"] * 3


def test_a_killed_training_goes_on_in_the_same_mlflow_run(graph, before, calls):
    before("train@one", "import os; open('calls').read().count('train') < 2 and os.kill(os.getpid(), 9)")
    assert run().is_completed()
    assert calls().count("train@one") == 2
    assert [r.info.status for r in runs_of_mlflow(graph)] == ["FINISHED"]


def test_variants_fan_out_share_the_gpu_and_one_that_fails_does_not_stop_the_other(graph, before, calls):
    write_graph(graph, ("one", "two"))
    for address in ("train@one", "train@two", "evaluate@one", "evaluate@two"):
        before(address, "import os; os.mkdir('gpu'); time.sleep(0.5); os.rmdir('gpu')")
    before("export@two", "print('ddpm export: parity'); sys.exit(2)")
    assert run().message == "export@two: ddpm export: parity"
    assert {"evaluate@one", "export@one", "evaluate@two", "export@two"} <= set(calls())
    assert tracking.find("one").aliases == ("challenger", "champion")


def test_guides_are_trained_and_recorded_before_what_they_guide_is_measured(graph, calls):
    write_graph(graph, ("one",), ("classifier",))
    assert run().is_completed()
    ran = calls()
    for earlier, later in (
        ("train-guide@classifier", "guide@one-classifier"),
        ("train@one", "guide@one-classifier"),
        ("guide@one-classifier", "evaluate@one"),
    ):
        assert ran.index(earlier) < ran.index(later)


@pytest.mark.slow
def test_a_guide_that_has_changed_is_trained_again(graph, calls):
    write_graph(graph, ("one",), ("classifier",))
    assert run().is_completed()
    assert run().message.startswith("Nothing has changed")
    (graph / "dvc.lock").write_text((graph / "dvc.lock").read_text().replace("train-guide@classifier", "other"))
    assert run().is_completed()
    assert calls().count("train-guide@classifier") == 2


def test_a_model_that_params_yaml_does_not_have_is_named(calls):
    state = run("three")
    assert state.is_failed()
    assert "'three'" in state.message
    assert calls() == []


@pytest.mark.slow
def test_mlflow_down_stops_no_training_and_fails_the_registration_alone(before, calls, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert run().message == "register one: MLflow does not answer at http://127.0.0.1:9"
    assert {"train@one", "evaluate@one", "export@one"} <= set(calls())


# --- Cancellation, with the flow in a process of its own ------------------------------------------------------------


@pytest.fixture
def start(graph) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Run the flow as a user does, its standard output and error in one pipe."""
    started: list[subprocess.Popen[str]] = []

    def start(**environment: str) -> subprocess.Popen[str]:
        flow = subprocess.Popen(
            [sys.executable, "-m", "flows.retrain"],
            cwd=graph,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            # The tests may be a shell's job in the background, which ignores Ctrl-C, and so would its children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        started.append(flow)
        return flow

    yield start
    for flow in started:
        if flow.poll() is None:
            flow.terminate()
            flow.communicate(timeout=180)


SLOW_TRAINING = """
import os, signal
def save(*_):
    pathlib.Path("saved").write_text("yes"); sys.exit(130)
signal.signal(signal.SIGINT, save)
pathlib.Path("training").write_text(f"{os.getpid()} {os.getppid()} {os.getpgrp()}")
time.sleep(120)
"""


def wait_until_training(graph: Path, flow: subprocess.Popen[str]) -> list[int]:
    deadline = time.monotonic() + 120
    while not (graph / "training").exists():
        assert flow.poll() is None, flow.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return [int(number) for number in (graph / "training").read_text().split()]


def group_members(group: int) -> list[str]:
    """The processes of a group that have not ended."""
    listed = subprocess.run(["ps", "-eo", "pgid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=2) for line in listed.splitlines()]
    return [command for number, state, command in rows if int(number) == group and not state.startswith("Z")]


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupted_flow_lets_the_training_save_and_leaves_no_process(graph, start, before, server, number):
    before("train@one", SLOW_TRAINING)
    flow = start(PREFECT_API_URL=server)
    *_, group = wait_until_training(graph, flow)
    assert group_members(group)
    flow.send_signal(number)
    output, _ = flow.communicate(timeout=180)
    assert flow.returncode in (130, -signal.SIGTERM), output
    assert (graph / "saved").exists()
    assert not group_members(group)
    assert [r.info.status for r in runs_of_mlflow(graph)] == ["KILLED"]


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_ends_a_flow_with_a_server_of_its_own_cleanly(graph, start, before):
    before("train@one", SLOW_TRAINING)
    environment = {key: "" for key in os.environ if key.startswith("PREFECT")}
    shutil.copy(ROOT / "prefect.toml", graph)
    flow = start(**environment)
    *_, group = wait_until_training(graph, flow)
    started = time.monotonic()
    os.killpg(flow.pid, signal.SIGINT)  # as a terminal does: to every process at once
    output, _ = flow.communicate(timeout=180)
    assert time.monotonic() - started < 120
    assert flow.returncode == 130
    assert "Traceback" not in output
    assert re.search(r"Finished in state (Crashed|Cancelled)", output)
    assert not group_members(group)
    assert not group_members(flow.pid)
