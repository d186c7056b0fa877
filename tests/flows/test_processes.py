"""Child processes: their output, their end, and that nothing is left of them."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from flows import processes
from flows.processes import Children, StoppedError

QUICK = {signal.SIGINT: 0.5, signal.SIGTERM: 0.5, signal.SIGKILL: 2.0}


def python(code: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(code)]


def run_in_thread(children: Children, command: list[str]) -> tuple[threading.Thread, list]:
    """Run a command as a task would; the list gets what came of it."""
    outcome: list = []

    def target() -> None:
        try:
            outcome.append(children.run(command, lambda line: None))
        except StoppedError as error:
            outcome.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    return thread, outcome


def wait_for(path: Path) -> str:
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.02)
    return path.read_text()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_lines_of_both_streams_arrive_in_order_and_the_exit_code_comes_back():
    lines: list[str] = []
    code = Children().run(
        python("import sys; print('one'); print('two', file=sys.stderr); print(); print('drei ✓'); sys.exit(3)"),
        lines.append,
    )
    assert code == 3
    assert lines == ["one", "two", "drei ✓"]


def test_a_signal_is_a_negative_exit_code():
    assert Children().run(python("import os; os.kill(os.getpid(), 9)"), lambda line: None) == -9


def test_of_a_progress_bar_only_some_states_are_passed_on(monkeypatch):
    monkeypatch.setattr(processes, "PROGRESS_EVERY", 0.2)
    lines: list[str] = []
    bar = r"""
        import sys, time
        for i in range(50):
            sys.stderr.write(f"\r{i + 1}/50"); sys.stderr.flush(); time.sleep(0.02)
        print()
        print("done")
    """
    Children().run(python(bar), lines.append)
    assert lines[-2:] == ["50/50", "done"]
    assert 2 <= len(lines) - 2 <= 10


def test_output_that_is_no_text_does_not_stop_the_reader():
    lines: list[str] = []
    Children().run(python(r"import sys; sys.stdout.buffer.write(b'\xff\xfe\nend\n')"), lines.append)
    assert lines[-1] == "end"


def test_a_line_arrives_while_the_child_still_runs():
    arrived: list[float] = []
    Children().run(python("import time; print('x'); time.sleep(0.6)"), lambda line: arrived.append(time.monotonic()))
    assert time.monotonic() - arrived[0] > 0.5


def test_the_environment_is_added_to_and_not_replaced():
    lines: list[str] = []
    Children().run(python("import os; print(os.environ['A'], 'PATH' in os.environ)"), lines.append, {"A": "1"})
    assert lines == ["1 True"]


def test_stopping_lets_a_child_save_its_state(tmp_path):
    children = Children()
    code = f"""
        import pathlib, signal, sys, time
        here = pathlib.Path({str(tmp_path)!r})
        def save(*_):
            (here / "saved").write_text("yes"); sys.exit(130)
        signal.signal(signal.SIGINT, save)
        (here / "ready").write_text("yes")
        time.sleep(600)
    """
    thread, outcome = run_in_thread(children, python(code))
    wait_for(tmp_path / "ready")
    children.stop()
    thread.join(60)
    assert (tmp_path / "saved").exists()
    assert isinstance(outcome[0], StoppedError)


def test_nothing_is_left_of_a_child_that_ignores_every_request_nor_of_what_it_started(tmp_path):
    children = Children()
    code = f"""
        import os, pathlib, signal, subprocess, sys, time
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        pathlib.Path({str(tmp_path / "pids")!r}).write_text(f"{{os.getpid()}} {{grandchild.pid}}")
        time.sleep(600)
    """
    thread, _ = run_in_thread(children, python(code))
    pids = [int(pid) for pid in wait_for(tmp_path / "pids").split()]
    assert all(map(is_alive, pids))
    children.stop(QUICK)
    thread.join(60)
    assert not thread.is_alive()
    assert not any(map(is_alive, pids))


def test_a_child_does_not_outlive_a_parent_that_was_killed(tmp_path):
    code = f"""
        from flows.processes import Children
        sleep = "import os, time; open({str(tmp_path / "pid")!r}, 'w').write(str(os.getpid())); time.sleep(600)"
        Children().run([{sys.executable!r}, "-c", sleep], print)
    """
    parent = subprocess.Popen(python(code), cwd=Path(__file__).parents[2])
    pid = int(wait_for(tmp_path / "pid"))
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 60
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(pid)


def test_a_child_leaves_no_helper_behind(tmp_path):
    groups: list[str] = []
    Children().run(python("import os; print(os.getpgrp())"), groups.append)
    deadline = time.monotonic() + 60
    while processes._exists(int(groups[0])) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not processes._exists(int(groups[0]))


def test_after_a_stop_no_child_is_started(tmp_path):
    children = Children()
    children.stop()
    with pytest.raises(StoppedError):
        children.run(python(f"open({str(tmp_path / 'x')!r}, 'w')"), lambda line: None)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
def test_leaving_the_block_by_an_exception_ends_the_children(error):
    children = Children()
    thread, outcome = run_in_thread(children, python("import time; time.sleep(600)"))
    deadline = time.monotonic() + 60
    while not children._running and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(error), children.stopped_on_error():
        raise error
    thread.join(60)
    assert isinstance(outcome[0], StoppedError)


def test_leaving_the_block_well_leaves_the_children_alone():
    children = Children()
    with children.stopped_on_error():
        pass
    assert children.run(python("pass"), lambda line: None) == 0


def test_a_child_is_out_of_reach_of_the_terminals_ctrl_c():
    """The flow decides when a child is interrupted; the terminal, which signals a whole group, must not."""
    groups: list[str] = []
    Children().run(python("import os; print(os.getpgrp())"), groups.append)
    assert int(groups[0]) != os.getpgrp()


def test_all_the_grace_fits_before_prefect_kills_the_flow():
    assert sum(processes.GRACE.values()) < 30
    assert list(processes.GRACE) == [signal.SIGINT, signal.SIGTERM, signal.SIGKILL]


def test_a_child_cannot_read_the_terminal():
    lines: list[str] = []
    Children().run(python("import sys; print(repr(sys.stdin.read()))"), lines.append)
    assert lines == ["''"]
