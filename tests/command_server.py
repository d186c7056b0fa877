"""Runs `ddpm` in processes that have its imports behind them, which take longer than most commands of a test.

One process imports what the stages import, and forks for each command. A command has a process as from a shell, with
its directory, environment, arguments, output and exit code; it only does not import again. Where the start of the
interpreter is what is tested, use `subprocess`.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

# What the stages import, at once and on their way; not onnxruntime, which starts a thread.
IMPORTED = (
    "ddpm.stages.fetch",
    "ddpm.stages.prepare",
    "ddpm.stages.extractor",
    "ddpm.stages.train",
    "ddpm.stages.evaluate",
    "ddpm.stages.export",
    "ddpm.stages.sample",
    "ddpm.stages.compare",
    "ddpm.stages.tune_ema",
    "ddpm.stages.tune_guidance",
    "matplotlib.backends.backend_agg",
    "safetensors.torch",
    "torch._dynamo.functional_export",
    "torch._functorch.aot_autograd",
    "torch.onnx._internal.exporter._compat",
)


TIMEOUT = 300  # seconds, after which a command is killed


@functools.cache
def _server() -> subprocess.Popen[str]:
    """This process's server, which ends with it."""
    return subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def run(arguments: Sequence[str], cwd: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """`python -m ddpm` with these arguments, in this directory and environment."""
    server = _server()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        files = [f"/proc/{os.getpid()}/fd/{file.fileno()}" for file in (out, err)]
        asked = {"arguments": arguments, "cwd": str(cwd), "environment": dict(environment), "files": files}
        print(json.dumps(asked), file=server.stdin, flush=True)
        code = int(server.stdout.readline())
        for file in (out, err):
            file.seek(0)
        return subprocess.CompletedProcess(["ddpm", *arguments], code, out.read(), err.read())


def serve() -> None:
    """Fork for each line of stdin; answer with the exit code."""
    for module in IMPORTED:
        importlib.import_module(module)
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "a process with threads cannot be forked"
    gc.freeze()  # else the collector touches, and so copies, all that is imported
    for line in iter(sys.stdin.readline, ""):
        child = os.fork()
        if not child:
            enter(**json.loads(line))
            leave(command())
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def enter(arguments: list[str], cwd: str, environment: dict[str, str], files: list[str]) -> None:
    """Take over directory, environment and arguments, and the files for what is printed."""
    sources = [os.open(os.devnull, os.O_RDONLY), *(os.open(file, os.O_WRONLY) for file in files)]
    for number, source in enumerate(sources):
        os.dup2(source, number)
        os.close(source)
    signal.alarm(TIMEOUT)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[1:], sys.path[0] = arguments, cwd


def command() -> int:
    """`python -m ddpm`; the exit code."""
    try:
        runpy.run_module("ddpm", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        return ended.code or 0
    except BaseException:
        traceback.print_exc()
    return 1


def leave(code: int) -> None:
    """End as the interpreter does, only that what is imported is not taken down, which takes as long as a command."""
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


if __name__ == "__main__":
    serve()
