"""Child processes that end with the flow: run one, pass its output on, stop all of them.

Prefect runs tasks in threads, and tells only the main thread when a flow run is cancelled. So the flow's body stops the
children, and the threads that wait for them come to an end by themselves.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

# What a child has after each signal before the next. SIGINT lets dvc wait for its command, and the command save its
# state. All together stay below the 30 seconds after which Prefect kills the flow's own process.
GRACE = {signal.SIGINT: 12.0, signal.SIGTERM: 8.0, signal.SIGKILL: 2.0}

# A progress bar draws itself over and over; one drawing in so many seconds is passed on.
PROGRESS_EVERY = 10.0


# Runs a command, and ends its process group when the pipe at standard input closes: when this process has ended,
# however it did. The command itself gets no input.
_LIFELINE = 'exec 3<&0 </dev/null; (read _ <&3; kill -TERM 0) >/dev/null 2>&1 & exec "$@" 3<&-'


class StoppedError(Exception):
    """The flow is being stopped: this child was not started, or was ended."""


class Children:
    """The child processes of one flow run."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self.stopping = threading.Event()

    def run(self, command: Sequence[str], on_line: Callable[[str], None], env: Mapping[str, str] | None = None) -> int:
        """Run a command to its end in a process group of its own; its output goes to `on_line`, line by line.

        Args:
            command: the program and its arguments.
            on_line: called with each line of stdout and stderr, and every ten seconds with a progress bar's state.
            env: variables added to the environment.

        Returns:
            The exit code; negative: the signal that killed it.

        Raises:
            StoppedError: the flow is being stopped.
        """
        with self._lock:
            if self.stopping.is_set():
                raise StoppedError
            child = subprocess.Popen(
                ["/bin/sh", "-c", _LIFELINE, "sh", *command],
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
            self._running.add(child)
        try:
            assert child.stdout is not None
            # newline="" keeps the \r by which a progress bar goes back to the start of its line.
            with io.TextIOWrapper(child.stdout, encoding="utf-8", errors="replace", newline="") as output:
                for line in _settled(output):
                    on_line(line)
            code = child.wait()
        finally:
            if child.stdin:
                child.stdin.close()
            with self._lock:
                self._running.discard(child)
        if self.stopping.is_set():
            raise StoppedError
        return code

    @contextlib.contextmanager
    def stopped_on_error(self) -> Iterator[None]:
        """Stop every child when the block is left by an exception, which is how Prefect and Ctrl-C end a flow."""
        try:
            yield
        except BaseException:
            self.stop()
            raise

    def stop(self, grace: Mapping[signal.Signals, float] = GRACE) -> None:
        """End every child and all that it started; none is started afterwards."""
        with self._lock:
            self.stopping.set()
            groups = [child.pid for child in self._running]
        for number, seconds in grace.items():
            for group in groups:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(group, number)
            deadline = time.monotonic() + seconds
            while (groups := [group for group in groups if _exists(group)]) and time.monotonic() < deadline:
                time.sleep(0.05)


def _exists(group: int) -> bool:
    """Whether a process group has a member. One that has ended counts until the thread that waits for it knows."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _settled(output: io.TextIOWrapper) -> Iterator[str]:
    """The lines of an output, and now and then the state of a progress bar, which ends in \\r."""
    shown = time.monotonic()
    for line in output:
        text = line.strip("\r\n")
        if line.endswith("\r"):
            if time.monotonic() - shown < PROGRESS_EVERY:
                continue
            shown = time.monotonic()
        if text.strip():
            yield text
