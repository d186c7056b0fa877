"""Runs: a training seen live, its curve, its page."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import queue
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ddpm.tracking.names import grouped
from ddpm.tracking.stage_outputs import credit_tag, flatten, manifest_of, model_name
from ddpm.tracking.store import experiment_id, load_mlflow, store_answers, store_uri

logger = logging.getLogger(__name__)

Metrics = Mapping[str, float]
Point = tuple[int, int, Metrics]  # milliseconds since 1970, step, metrics
_Seen = tuple[int, int, Metrics, Any]  # the same with a picture (PIL's) or None


class Log(Protocol):
    """Takes a step's metrics, or a picture (PIL's) of what the model draws after it."""

    def __call__(self, step: int, metrics: Metrics, picture: Any = None) -> None: ...


# The environment variable by which MLflow itself hands a run on to a child process.
RUN_ID = "MLFLOW_RUN_ID"

_PICTURES = "samples"  # MLflow's key of the pictures
# Tracked files that the pipeline writes: what ran, the data's version, and the receipt of their download.
_WRITTEN = ("dvc.lock", "data.dvc", "fetched.json")

_TAG_LENGTH = 5000  # characters; MLflow takes 8,000

# The tag that says which process has a run open.
PROCESS = "ddpm.process"

_BATCH = 1000  # metrics a request, the most that MLflow takes

_PAUSE = 5.0  # seconds before a server that did not answer is asked again

# Seconds that the end of a training waits for its last points to be taken; one that is to stop has ten in all.
_PATIENCE, _STOPPED_PATIENCE = 20.0, 2.0


@store_answers()
def start_run(variant: str, root: Path = Path()) -> str:
    """Open a run for a training that is about to start; its identifier goes to the child as MLFLOW_RUN_ID."""
    mlflow = load_mlflow(root)
    client = mlflow.MlflowClient()
    experiment = experiment_id(mlflow, model_name(root), root)
    close_abandoned(client, experiment)
    name = f"{variant} {time.strftime('%Y-%m-%d %H:%M')}"
    tags = {"variant": variant, PROCESS: _this_process(), **git_tags(root), **credit_tag(manifest_of(root))}
    return client.create_run(experiment, run_name=name, tags=tags).info.run_id


def close_abandoned(client: Any, experiment: str) -> list[str]:
    """Record as killed the runs that seem to go on, but whose process on this machine has ended. Returns them."""
    closed = []
    for run in client.search_runs([experiment], filter_string="attributes.status = 'RUNNING'"):
        if _has_ended(run.data.tags.get(PROCESS, "")):
            client.set_terminated(run.info.run_id, status="KILLED")
            closed.append(run.info.run_id)
    return closed


def _this_process() -> str:
    """This process among all of all machines, and among those that had its number before: host, number, start."""
    return f"{_machine()} {os.getpid()} {_start_of(os.getpid())}"


def _has_ended(process: str) -> bool:
    """Whether such a process was on this machine and is no more."""
    machine, _, rest = process.partition(" ")
    number, _, start = rest.partition(" ")
    return machine == _machine() and number.isdecimal() and _start_of(int(number)) != start


def _machine() -> str:
    """This start of this machine, or of the container: numbers of processes mean something within it alone."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        # A container shares the kernel with its host, and numbers its processes by itself.
        return f"{socket.gethostname()}/{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # no Linux; then no start is known either, and no process counts as ended
        return socket.gethostname()


def _start_of(process: int) -> str:
    """When a process started, in the kernel's ticks; empty where there is none."""
    try:
        return (
            Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
        )
    except (OSError, IndexError):
        return ""


@store_answers()
def end_run(run_id: str, status: str, root: Path = Path()) -> None:
    """Close a run that ended before its model was registered: `FAILED` or `KILLED`."""
    load_mlflow(root).MlflowClient().set_terminated(run_id, status=status)


@store_answers()
def log_study(
    name: str,
    parameters: Mapping[str, Any],
    points: Iterable[tuple[int, Metrics]],
    files: Iterable[Path],
    root: Path = Path(),
) -> str:
    """Record a finished study of many models as one run, in an experiment of its own.

    Args:
        name: the experiment's, as `ddpm-<name>`.
        parameters: nested; logged flat.
        points: (step, metrics).
        files: artifacts.

    Returns:
        The run's identifier.
    """
    mlflow = load_mlflow(root)
    from mlflow.entities import Param

    client = mlflow.MlflowClient()
    experiment = experiment_id(mlflow, f"ddpm-{name}", root)
    run_name = f"{name} {time.strftime('%Y-%m-%d %H:%M')}"
    run_id = client.create_run(experiment, run_name=run_name, tags=git_tags(root)).info.run_id
    client.log_batch(run_id, params=[Param(key, value) for key, value in flatten(dict(parameters))])
    now = milliseconds()
    log_metrics(client, run_id, [(now, step, metrics) for step, metrics in points])
    for file in files:
        client.log_artifact(run_id, str(file))
    client.set_terminated(run_id)
    return run_id


@store_answers()
def run_url(run_id: str, root: Path = Path()) -> str:
    """The page of a run: on the tracking server, or on the one that `make serve` starts."""
    experiment = load_mlflow(root).MlflowClient().get_run(run_id).info.experiment_id
    return f"{ui_url(root)}/#/experiments/{experiment}/runs/{run_id}"


def ui_url(root: Path = Path()) -> str:
    """The address of MLflow's pages: the tracking server's, or that of the one that `make serve` starts.

    MLFLOW_UI_URL wins: a browser may know the server by another name than a client inside a container network.
    """
    if pages := os.environ.get("MLFLOW_UI_URL"):
        return pages.rstrip("/")
    uri = store_uri(root)
    return uri.rstrip("/") if uri.startswith("http") else f"http://127.0.0.1:{os.environ.get('MLFLOW_PORT', 5000)}"


@contextlib.contextmanager
def live_curve(root: Path = Path()) -> Iterator[Log]:
    """Within the block, the function yielded adds a step's metrics, or a picture, to the run that MLFLOW_RUN_ID names.

    It returns at once and never fails: a training does not wait for its observer. What a server does not take is kept
    until it does, or until the model is registered. A step that the run has already is left out: a training that
    continues from a checkpoint, or goes back to one, repeats some. The speed, in steps a second, and the machine's load
    are logged beside. Without MLFLOW_RUN_ID the function does nothing.
    """
    run_id = os.environ.get(RUN_ID)
    if not run_id:
        yield lambda step, metrics, picture=None: None
        return
    # A server that does not answer is given up soon.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    points: queue.SimpleQueue[_Seen | None] = queue.SimpleQueue()
    sender = threading.Thread(target=_send, args=(run_id, points, root), name="live-curve", daemon=True)
    sender.start()
    before: tuple[int, int] | None = None

    def log(step: int, metrics: Metrics, picture: Any = None) -> None:
        nonlocal before
        moment = milliseconds()
        if picture is not None:
            points.put((moment, step, {}, picture))
            return
        if before and moment > before[0] and step > before[1]:
            metrics = {**metrics, "steps_per_second": 1000 * (step - before[1]) / (moment - before[0])}
        before = moment, step
        points.put((moment, step, grouped("train", metrics), None))

    patience = _STOPPED_PATIENCE
    try:
        yield log
        patience = _PATIENCE
    finally:
        points.put(None)
        sender.join(timeout=patience)


def _send(run_id: str, points: queue.SimpleQueue[_Seen | None], root: Path) -> None:
    """Log points until there comes None."""
    waiting: list[_Seen] = []
    logged: set[int] = set()
    pictured: set[int] = set()
    connected = ended = complained = False
    pause: float | None = 0.0  # connect before the first point
    with contextlib.ExitStack() as load:
        while not ended:
            ended = _collect(points, waiting, pause)
            try:
                client = load_mlflow(root).MlflowClient()
                if not connected:
                    client.update_run(run_id, status="RUNNING")
                    # Before the server fell silent it may have taken what it did not say it had.
                    logged = {metric.step for metric in client.get_metric_history(run_id, "train/loss")}
                    pictured = _pictured(client, run_id)
                    load.close()
                    load.enter_context(_machine_load(run_id))
                # A training that goes back to a checkpoint comes to some steps again. A point once sent stays.
                curve = {step: (moment, step, metrics) for moment, step, metrics, _ in waiting if metrics}
                log_metrics(client, run_id, [point for step, point in curve.items() if step not in logged])
                logged |= curve.keys()
                for _, step, _, picture in waiting:
                    if picture is not None and step not in pictured:
                        client.log_image(run_id, picture, key=_PICTURES, step=step)
                        pictured.add(step)
                waiting.clear()
                connected, pause = True, None
            except Exception as error:  # whatever it is, it is not the training's affair
                connected, pause = False, _PAUSE
                if not complained:
                    first_line = str(error).partition("\n")[0]
                    logger.warning("MLflow does not take the curve (%s); training goes on, it will be sent", first_line)
                    complained = True


def _pictured(client: Any, run_id: str) -> set[int]:
    """The steps of which a run has a picture. MLflow writes the step into the file's name, between % or +."""
    names = [Path(file.path).name for file in client.list_artifacts(run_id, "images")]
    return {int(found[1]) for name in names if (found := re.match(rf"{_PICTURES}\Wstep\W(\d+)\W", name))}


def _collect(points: queue.SimpleQueue[_Seen | None], waiting: list[_Seen], pause: float | None) -> bool:
    """Move the points that are there to those that wait, or all that come during a pause. Whether None was among them.

    Without a pause it waits for the first.
    """
    end = time.monotonic() + (pause or 0.0)
    try:
        point = points.get(timeout=pause)
        while point is not None:
            waiting.append(point)
            point = points.get(timeout=max(0.0, end - time.monotonic()))
    except queue.Empty:
        return False
    return True


@contextlib.contextmanager
def _machine_load(run_id: str) -> Iterator[None]:
    """Log the load of CPU, memory, disk and GPU to a run, every ten seconds."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run_id, resume_logging=True)
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()


def log_metrics(client: Any, run_id: str, points: Sequence[Point]) -> None:
    """Log (milliseconds since 1970, step, metrics) points; a value that is no number is left out."""
    from mlflow.entities import Metric

    batch = [
        Metric(key, float(value), moment, step)
        for moment, step, metrics in points
        for key, value in metrics.items()
        if math.isfinite(value)
    ]
    for first in range(0, len(batch), _BATCH):
        client.log_batch(run_id, metrics=batch[first : first + _BATCH])


def milliseconds() -> int:
    return int(time.time() * 1000)


def git_tags(root: Path) -> dict[str, str]:
    """The commit, whether code or parameters differ from it, and in which files; empty outside a git repository.

    What the pipeline itself writes into tracked files says nothing of that: the lineage has their hashes.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout

    try:
        commit = git("rev-parse", "HEAD").strip()
        own = [f":(exclude){name}" for name in _WRITTEN]
        changed = git("diff", "HEAD", "--name-only", "-z", "--relative", "--", ".", *own).rstrip("\0").split("\0")
    except (OSError, subprocess.CalledProcessError):
        return {}
    dirty = any(changed)
    tags = {"mlflow.source.name": "ddpm", "mlflow.source.git.commit": commit, "git_dirty": str(dirty).lower()}
    return {**tags, "git_changed": ", ".join(changed)[:_TAG_LENGTH]} if dirty else tags
