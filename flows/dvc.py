"""DVC as the flow sees it: which stages have changed, and running one of them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ddpm.errors import UpstreamError
from flows.processes import Children

_DVC = [sys.executable, "-m", "dvc", "--wait-for-lock"]

# Exit codes after which the same command may succeed: the outside failed (75), or the process was killed from outside,
# by a scheduler or for want of memory. A training answers SIGTERM with 130, and goes on from its last checkpoint.
_TRANSIENT = {75, 130} | {code for number in (signal.SIGKILL, signal.SIGTERM) for code in (-number, 128 + number)}

# What DVC adds after each stage for those who type its commands themselves.
_ADVICE = ("To track the changes", "\tgit add", "To enable auto staging", "\tdvc config", "Use `dvc push`")

_FAILED = re.compile(r"^ERROR: failed to reproduce .*?: (?P<why>.*)$")
_BUSY = " is busy, it is being blocked by:"  # by another process that runs a stage
_EXITED = re.compile(r"exited with (?P<code>-?\d+)$")


@dataclass(frozen=True)
class Failure:
    """Why a stage failed, in its command's own words."""

    stage: str
    message: str
    code: int

    @property
    def transient(self) -> bool:
        """Whether running it again can help."""
        return self.code in _TRANSIENT

    def __str__(self) -> str:
        return f"{self.stage}: {self.message}"


def changed_stages(*stages: str) -> set[str]:
    """Which stages, of these or of all, would run: their command, code, parameters or files are not dvc.lock's.

    Those that always run are left out. While another process runs a stage, only others can be asked for.

    Raises:
        RuntimeError: DVC cannot tell, and why.
    """
    done = subprocess.run([*_DVC, "status", "--json", *stages], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(" ".join(done.stderr.split()).removeprefix("ERROR: "))
    return {stage for stage, changes in json.loads(done.stdout).items() if changes != ["always changed"]}


def reproduce(
    stage: str, children: Children, on_line: Callable[[str], None], env: Mapping[str, str] | None = None
) -> Failure | None:
    """Run one stage, if it has changed; its output goes to `on_line`. Returns why it failed, or None.

    Raises:
        StoppedError: the flow is being stopped.
    """
    # The stages' commands lie beside the interpreter, whether or not its environment is active.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    command = [*_DVC, "repro", "--single-item", stage]
    code, lines = _run(command, children, on_line, {"PATH": path, **(env or {})})
    return explain(stage, lines, code) if code else None


def accept_new_data(children: Children, on_line: Callable[[str], None]) -> Failure | None:
    """Have the upstream's data, whatever they are, recorded in data.dvc. Returns why that failed, or None."""
    return run_ddpm(["fetch", "--accept"], children, on_line)


def run_ddpm(arguments: list[str], children: Children, on_line: Callable[[str], None]) -> Failure | None:
    """Run a `ddpm` command that is no stage. Returns why it failed, or None.

    Raises:
        StoppedError: the flow is being stopped.
    """
    code, lines = _run([sys.executable, "-m", "ddpm", *arguments], children, on_line)
    return Failure(arguments[0], lines[-1] if lines else f"ended with {code}", code) if code else None


def _run(
    command: list[str], children: Children, on_line: Callable[[str], None], env: Mapping[str, str] | None = None
) -> tuple[int, list[str]]:
    """Run a command; its exit code and its last lines."""
    recent: deque[str] = deque(maxlen=20)

    def pass_on(line: str) -> None:
        if not line.startswith(_ADVICE):
            recent.append(line)
            on_line(line)

    return children.run(command, pass_on, env), list(recent)


def explain(stage: str, lines: list[str], code: int) -> Failure:
    """What the last lines of a failed `dvc repro` say: the command's own last words, or else DVC's."""
    for words, line in zip(["", *lines], lines, strict=False):
        if not (failed := _FAILED.match(line)):
            continue
        if not (exited := _EXITED.search(failed["why"])):
            return Failure(stage, failed["why"], UpstreamError.exit_code if _BUSY in failed["why"] else code)
        code = int(exited["code"])
        if stopped := _stopped_by(code):
            return Failure(stage, f"the command was stopped by {stopped}", code)
        return Failure(stage, failed["why"] if words.startswith("> ") else words, code)
    # After an error that it did not expect, DVC still says where to ask for help.
    said = [line for line in lines if line.startswith("ERROR: ")] or lines
    return Failure(stage, said[-1] if said else f"dvc ended with {code} and no word", code)


def _stopped_by(code: int) -> str | None:
    """The signal's name, if an exit code tells of one: as -9 where DVC sees it, as 137 where a shell stood between."""
    number = -code if code < 0 else code - 128
    try:
        return signal.Signals(number).name
    except ValueError:
        return None
