"""Running one stage of a real DVC graph, and what is said when it fails."""

import threading
import time

import pytest

from flows import dvc
from flows.dvc import Failure, explain
from flows.processes import Children, StoppedError


def reproduce(stage: str, children: Children | None = None) -> tuple[Failure | None, list[str]]:
    lines: list[str] = []
    return dvc.reproduce(stage, children or Children(), lines.append), lines


def test_a_stage_runs_alone_and_its_output_is_passed_on(graph, calls):
    failure, lines = reproduce("fetch")
    assert failure is None
    assert "done with fetch" in lines
    assert calls() == ["fetch"]
    assert not [line for line in lines if "git add" in line or "dvc config" in line or "dvc push" in line]


def test_a_stage_runs_again_when_it_has_changed_which_is_told_but_not_of_what_always_runs(graph, calls):
    reproduce("fetch")
    assert "prepare" in dvc.changed_stages()
    reproduce("prepare")
    reproduce("prepare")
    assert calls() == ["fetch", "prepare"]
    assert not dvc.changed_stages("prepare")
    assert not dvc.changed_stages("fetch")
    assert dvc.changed_stages("train@one") == {"train@one"}


def test_a_graph_that_dvc_cannot_read_is_an_error_in_its_words(graph):
    (graph / "dvc.yaml").write_text("stages: 3")
    with pytest.raises(RuntimeError, match=r"dvc\.yaml"):
        dvc.changed_stages()


@pytest.mark.parametrize(("code", "transient"), [(2, False), (1, False), (75, True)])
def test_a_failure_is_the_commands_own_last_line_and_exit_code(before, graph, code, transient):
    before("fetch", f"print('ddpm fetch: no such folder', file=sys.stderr); sys.exit({code})")
    failure, _ = reproduce("fetch")
    assert str(failure) == "fetch: ddpm fetch: no such folder"
    assert (failure.code, failure.transient) == (code, transient)


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
def test_a_killed_command_is_worth_another_try(before, graph, monkeypatch, shell):
    """Dash stays between DVC and the command and answers 137, bash gives way to it and DVC sees -9."""
    monkeypatch.setenv("SHELL", shell)
    before("fetch", "import os; print('50%'); os.kill(os.getpid(), 9)")
    failure, _ = reproduce("fetch")
    assert failure.transient
    assert failure.message == "the command was stopped by SIGKILL"


def test_a_failure_of_dvc_itself_is_said_in_its_words(graph):
    failure, _ = reproduce("prepare")
    assert not failure.transient
    assert "fetched.json" in failure.message


def test_a_silent_failure_names_the_command(before, graph):
    before("fetch", "sys.exit(3)")
    failure, _ = reproduce("fetch")
    assert failure.message.endswith("stage.py fetch, exited with 3")


def test_the_environment_reaches_the_stage(before, graph):
    before("fetch", "import os; print('got', os.environ['MLFLOW_RUN_ID'])")
    lines: list[str] = []
    dvc.reproduce("fetch", Children(), lines.append, {"MLFLOW_RUN_ID": "abc"})
    assert "got abc" in lines


def test_stopping_lets_the_command_end_by_itself_and_dvc_leave_its_locks(before, graph):
    """SIGINT reaches the command, which saves its state; dvc waits for it, and the next call finds no stale lock."""
    before(
        "fetch",
        """
        import signal, time
        def save(*_):
            time.sleep(0.5); pathlib.Path("saved").write_text("yes"); sys.exit(130)
        signal.signal(signal.SIGINT, save)
        pathlib.Path("ready").write_text("yes")
        time.sleep(600)
        """,
    )
    children, outcome = Children(), []

    def task() -> None:
        try:
            outcome.append(reproduce("fetch", children))
        except StoppedError as error:
            outcome.append(error)

    thread = threading.Thread(target=task)
    thread.start()
    deadline = time.monotonic() + 60
    while not (graph / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    children.stop()
    thread.join(60)
    assert (graph / "saved").exists()
    assert isinstance(outcome[0], StoppedError)
    (graph / "on" / "fetch").unlink()
    assert reproduce("fetch")[0] is None


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "dvc ended with 255 and no word"),
        (["ERROR: unexpected error"], "ERROR: unexpected error"),
        (["ERROR: no such folder", "", "Having any troubles? Hit us up at …"], "ERROR: no such folder"),
        (
            ["> ddpm train a", "ERROR: failed to reproduce 'train@a': failed to run: ddpm train a, exited with 1"],
            "failed to run: ddpm train a, exited with 1",
        ),
        (
            ["ddpm: bad: key", "ERROR: failed to reproduce 'x': failed to run: y: z, exited with 2", "later words"],
            "ddpm: bad: key",
        ),
    ],
)
def test_whatever_dvc_says_there_is_one_line_to_show(lines, message):
    assert explain("stage", lines, 255).message == message
