"""Fetch, prepare, fit the extractor; then for each variant train, evaluate, export, register and promote.

`python -m flows.retrain` runs it here and now, with a server of Prefect's own for as long as it takes, or on the
server that PREFECT_API_URL names; the deployment in prefect.yaml runs it every week.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from prefect import Task, flow, get_client, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.objects import TaskRun
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound
from prefect.futures import PrefectFuture, wait
from prefect.runtime import task_run
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled, Completed, Failed, State

from ddpm import tracking
from ddpm.config import load_params
from ddpm.errors import UpstreamError, UserError
from ddpm.tracking import Registration
from flows import dvc, report
from flows.processes import Children, StoppedError
from flows.report import Result

# Of trainings and evaluations one at a time, over all flow runs. For two GPUs: `prefect gcl update gpu --limit 2`.
GPU = "gpu"

# Seconds before the second and the third attempt of a task.
PAUSES = (10.0, 60.0)


@dataclass
class Pipeline:
    """What the tasks of one flow run share."""

    children: Children = field(default_factory=Children)
    open_runs: dict[str, str] = field(default_factory=dict)
    """The MLflow run of each variant that is in training and not registered yet."""
    registry: threading.Lock = field(default_factory=threading.Lock)
    """Held while registering or promoting: which version is the champion is decided for one after the other."""
    gpu: threading.Lock = field(default_factory=threading.Lock)
    """Held to train or evaluate, where no server limits that."""


# Prefect runs each task in a copy of the flow's context.
_pipeline: ContextVar[Pipeline] = ContextVar("pipeline")


@flow
def retrain(variants: list[str] | None = None, accept_new_data: bool = False) -> State:
    """Bring the models up to date with the data, the code and params.yaml; do nothing where nothing has changed.

    Args:
        variants: models named in params.yaml; default: those under its key `variants`.
        accept_new_data: record what the upstream has now as the data's new version.
    """
    try:
        names = _names(variants)
    except UserError as error:
        return Failed(message=str(error))
    with _shared_state():
        known = [registered.submit(name) for name in names]
        fetched = fetch.submit(accept_new_data)
        fetched.wait()
        if fetched.state.is_completed() and not _has_changed(names):
            versions = [future.result(raise_on_failure=False) for future in known]
            if all(isinstance(version, Registration) and version.reason for version in versions):
                return _nothing_to_do([Result.read(*pair) for pair in zip(names, versions, strict=True)])

        prepared = prepare.submit(wait_for=[fetched])
        extractor = fit_extractor.submit(wait_for=[prepared])
        steps, promoted = [fetched, prepared, extractor], {}
        for name in names:
            trained = train.submit(name, wait_for=[extractor])
            evaluated = evaluate.submit(name, wait_for=[trained])
            exported = export.submit(name, wait_for=[evaluated])
            version = register.submit(name, wait_for=[exported])
            promoted[name] = promote.submit(name, wait_for=[version])
            steps += [trained, evaluated, exported, version, promoted[name]]
        wait([*steps, *known])
        done = {name: future.result() for name, future in promoted.items() if future.state.is_completed()}
        return _outcome(steps, [Result.read(name, version) for name, version in done.items()])


def _names(variants: Sequence[str] | None) -> list[str]:
    params = load_params()
    names = list(variants or params.variants)
    for name in names:
        params.variant(name)
        if name not in params.variants:
            raise UserError(
                f"{name} is not among the `variants` of params.yaml, which are what dvc.yaml has stages for"
            )
    return names


def _has_changed(variants: Iterable[str]) -> bool:
    """Whether DVC would run a stage that these models come of."""
    own = {f"{stage}@{name}" for stage in ("train", "evaluate", "export") for name in variants}
    return bool(dvc.changed_stages() & {"prepare", "fit-extractor", *own})


def _nothing_to_do(results: list[Result]) -> State:
    message = f"Nothing has changed since {', '.join(result.registration.uri for result in results)}"
    get_run_logger().info("%s: nothing to do", message)
    return Completed(message=message, data=results)


def _outcome(steps: list[PrefectFuture[Any]], results: list[Result]) -> State:
    """Publish what there is to see, and say what failed."""
    if results:
        report.publish(results)
    if failures := [step.state.message or "" for step in steps if step.state.is_failed() or step.state.is_crashed()]:
        return Failed(message="; ".join(failures))
    return Completed(message="; ".join(map(str, results)), data=results)


@contextlib.contextmanager
def _shared_state() -> Iterator[None]:
    """Give the tasks what they share; in the end no child process is left, and no MLflow run is left open."""
    shared = Pipeline()
    token = _pipeline.set(shared)
    _create_gpu_limit()
    try:
        with shared.children.stopped_on_error():
            yield
    finally:
        _pipeline.reset(token)
        status = "KILLED" if shared.children.stopping.is_set() else "FAILED"
        for run_id in shared.open_runs.values():
            with contextlib.suppress(Exception):  # the reason for being here matters more
                tracking.end_run(run_id, status)


def _create_gpu_limit() -> None:
    with get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(GPU)
        except ObjectNotFound:
            client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=GPU, limit=1))


# --- Its tasks: one DVC stage each, then MLflow ---------------------------------------------------------------------


def _retry_can_help(task: Task[..., Any], run: TaskRun, state: State) -> bool:
    """A failure says by its exit code whether it can. An exception is something like a database that was locked."""
    if _pipeline.get().children.stopping.is_set():
        return False
    return state.data.transient if isinstance(state.data, dvc.Failure) else isinstance(state.data, Exception)


_options: dict[str, Any] = {
    "retries": len(PAUSES),
    "retry_condition_fn": _retry_can_help,
    "cache_policy": NO_CACHE,
    "persist_result": False,
}


@task(task_run_name="fetch", **_options)
def fetch(accept_new_data: bool) -> State | None:
    return _run("fetch", accept_new_data=accept_new_data)


@task(task_run_name="prepare", **_options)
def prepare() -> State | None:
    return _run("prepare")


@task(name="fit-extractor", task_run_name="fit-extractor", **_options)
def fit_extractor() -> State | None:
    return _run("fit-extractor")


@task(task_run_name="train {variant}", **_options)
def train(variant: str) -> State | None:
    with _gpu():
        return _run(f"train@{variant}", env=_live_curve(variant))


@task(task_run_name="evaluate {variant}", **_options)
def evaluate(variant: str) -> State | None:
    with _gpu():
        return _run(f"evaluate@{variant}")


@task(task_run_name="export {variant}", **_options)
def export(variant: str) -> State | None:
    return _run(f"export@{variant}")


@task(task_run_name="register {variant}", **_options)
def register(variant: str) -> Registration | State:
    _pause_before_retry()
    shared = _pipeline.get()
    with shared.registry:
        try:
            version = tracking.register(variant, run_id=shared.open_runs.get(variant))
        except (UserError, UpstreamError) as error:
            return _failed(dvc.Failure(f"register {variant}", str(error), error.exit_code))
    shared.open_runs.pop(variant, None)
    get_run_logger().info("%s", version)
    return version


@task(task_run_name="promote {variant}", **_options)
def promote(variant: str) -> Registration | State:
    _pause_before_retry()
    with _pipeline.get().registry:
        try:
            decision = tracking.promote(variant)
        except (UserError, UpstreamError) as error:
            return _failed(dvc.Failure(f"promote {variant}", str(error), error.exit_code))
        get_run_logger().info("%s: %s", variant, decision)
        version = tracking.find(variant)
    assert version is not None
    return version


@task(task_run_name="registered {variant}", cache_policy=NO_CACHE, persist_result=False)
def registered(variant: str) -> Registration | None:
    """The version that came of what dvc.lock has, if there is one."""
    try:
        return tracking.find(variant)
    except (UserError, UpstreamError):
        return None  # a stage has not run yet, or MLflow does not answer: `register` will say so


def _run(stage: str, *, env: dict[str, str] | None = None, accept_new_data: bool = False) -> State | None:
    """Run a DVC stage in a child process, its output in this task's log; a failure in the command's own words."""
    _pause_before_retry()
    logger = get_run_logger()
    try:
        children = _pipeline.get().children
        failure = dvc.accept_new_data(children, logger.info) if accept_new_data else None
        failure = failure or dvc.reproduce(stage, children, logger.info, env)
    except StoppedError:
        return Cancelled(message=f"{stage}: stopped with the flow")
    return _failed(failure) if failure else None


def _failed(failure: dvc.Failure) -> State:
    return Failed(message=str(failure), data=failure)


def _pause_before_retry() -> None:
    # Prefect's own delay between attempts would sleep through a cancellation.
    attempt = task_run.run_count or 1
    if attempt > 1:
        _pipeline.get().children.stopping.wait(PAUSES[min(attempt - 2, len(PAUSES) - 1)])


def _live_curve(variant: str) -> dict[str, str]:
    """The environment that sends a training's curve to MLflow; empty if it will not run, or MLflow does not answer."""
    shared = _pipeline.get()
    runs = shared.open_runs
    try:
        if variant not in runs and not shared.children.stopping.is_set() and dvc.changed_stages(f"train@{variant}"):
            runs[variant] = tracking.start_run(variant)
    except Exception as error:  # training does not wait for its observer
        get_run_logger().warning("MLflow will not see this training live: %s", error)
    return {tracking.RUN_ID: runs[variant]} if variant in runs else {}


def _gpu() -> contextlib.AbstractContextManager[Any]:
    """The right to use the GPU: a limit over all flow runs of a server.

    A run with a server of its own shares it among its own tasks; that server would not free what a killed run held.
    """
    return concurrency(GPU, lease_duration=60) if PREFECT_API_URL.value() else _pipeline.get().gpu


# --- The command line -----------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.retrain", description=retrain.description)
    parser.add_argument("--variants", nargs="+", metavar="V", help="models of params.yaml (default: its variants)")
    parser.add_argument("--accept-new-data", action="store_true", help="record the upstream's data as a new version")
    options = parser.parse_args(arguments)
    try:
        _start_own_server()
        state = retrain(options.variants, options.accept_new_data, return_state=True)
    except KeyboardInterrupt:
        print("\nStopped; the same command continues where it was.", file=sys.stderr)
        return 130
    if not state.is_completed():
        print(f"\n{state.message}", file=sys.stderr)
        return 1
    results = state.result()
    print(f"\n{report.text(results)}\n\n{report.pages(results)}")
    return 0


def _start_own_server() -> None:
    """Start the server that Prefect starts where none is named, out of reach of the terminal's Ctrl-C.

    A terminal interrupts all its processes at once. Without its server the flow could not record how it ended, and
    would try for minutes.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which a child inherits
    try:
        get_client(sync_client=True)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


if __name__ == "__main__":
    sys.exit(main())
