"""Runs: a training seen live, its curve, its page."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import queue
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ddpm.tracking.names import grouped
from ddpm.tracking.outputs import flatten, model_name
from ddpm.tracking.store import experiment_id, load_mlflow, store_answers, store_uri

logger = logging.getLogger(__name__)

Metrics = Mapping[str, float]


class Log(Protocol):
    """Takes a step's metrics, or a picture (PIL's) of what the model draws after it."""

    def __call__(self, step: int, metrics: Metrics, picture: Any = None) -> None: ...


# The environment variable by which MLflow itself hands a run on to a child process.
RUN_ID = "MLFLOW_RUN_ID"

_Point = tuple[int, int, Metrics, Any]

_BATCH = 1000  # metrics a request, the most that MLflow takes


@store_answers()
def start_run(variant: str, root: Path = Path()) -> str:
    """Open a run for a training that is about to start; its identifier goes to the child as MLFLOW_RUN_ID."""
    mlflow = load_mlflow(root)
    client = mlflow.MlflowClient()
    experiment = experiment_id(mlflow, model_name(root), root)
    name = f"{variant} {time.strftime('%Y-%m-%d %H:%M')}"
    return client.create_run(experiment, run_name=name, tags={"variant": variant, **git_tags(root)}).info.run_id


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

    It returns at once and never fails: a training does not wait for its observer. The speed, in steps a second, and
    the machine's load are logged beside. Without MLFLOW_RUN_ID the function does nothing; what a server missed is
    logged when the model is registered.
    """
    run_id = os.environ.get(RUN_ID)
    if not run_id:
        yield lambda step, metrics, picture=None: None
        return
    # A server that does not answer is given up soon.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    points: queue.SimpleQueue[_Point | None] = queue.SimpleQueue()
    sender = threading.Thread(target=_send, args=(run_id, points, root), name="live-curve", daemon=True)
    sender.start()
    try:
        yield lambda step, metrics, picture=None: points.put((milliseconds(), step, dict(metrics), picture))
    finally:
        points.put(None)
        sender.join(timeout=20)


def _send(run_id: str, points: queue.SimpleQueue[_Point | None], root: Path) -> None:
    """Log points until there comes None."""
    try:
        client = load_mlflow(root).MlflowClient()
        client.update_run(run_id, status="RUNNING")
        with _machine_load(run_id):
            before: tuple[int, int] | None = None
            while point := points.get():
                moment, step, metrics, picture = point
                if picture is not None:
                    client.log_image(run_id, picture, key="samples", step=step)
                    continue
                if before and moment > before[0]:
                    metrics = {**metrics, "steps_per_second": 1000 * (step - before[1]) / (moment - before[0])}
                log_metrics(client, run_id, [(moment, step, grouped("train", metrics))])
                before = moment, step
    except Exception as error:  # whatever it is, it is not the training's affair
        first_line = str(error).partition("\n")[0]
        logger.warning("the curve cannot be sent to MLflow (%s); training goes on without", first_line)


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


def log_metrics(client: Any, run_id: str, points: Sequence[tuple[int, int, Metrics]]) -> None:
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
    """The commit, and whether the tracked files differ from it; empty outside a git repository."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        dirty = bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"mlflow.source.name": "ddpm", "mlflow.source.git.commit": commit, "git_dirty": str(dirty).lower()}
