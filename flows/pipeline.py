"""What the tasks of a flow run share: its child processes, the right to use the GPU, and when a failure is retried."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import httpx
from prefect import Task, get_client
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.objects import TaskRun
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.runtime import task_run
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled, Failed, State

from ddpm import tracking
from ddpm.errors import UpstreamError, UserError
from flows import dvc
from flows.processes import Children, StoppedError

# Of trainings and evaluations one at a time, over all flow runs. For two GPUs: `prefect gcl update gpu --limit 2`.
GPU = "gpu"

# Of promotions one at a time, over all flow runs on all machines: MLflow moves an alias wherever it is by then.
CHAMPION = "champion"

# Seconds before the second and the third attempt of a task.
PAUSES = (10.0, 60.0)

# Seconds between a task's questions for a permission that others hold.
WAIT = 5.0

# Prefect logs each question for a permission that others hold as the failure of a service. Whoever asks gets an answer.
logging.getLogger("prefect._internal.concurrency").addFilter(
    lambda record: not record.getMessage().startswith("Service 'ConcurrencySlotAcquisition")
)


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


def shared() -> Pipeline:
    """What the tasks of the present flow run share."""
    return _pipeline.get()


@contextlib.contextmanager
def shared_state() -> Iterator[None]:
    """Give the tasks what they share; in the end no child process is left, and no MLflow run is left open."""
    pipeline = Pipeline()
    token = _pipeline.set(pipeline)
    _create_limits()
    try:
        with pipeline.children.stopped_on_error():
            yield
    finally:
        _pipeline.reset(token)
        status = "KILLED" if pipeline.children.stopping.is_set() else "FAILED"
        for run_id in pipeline.open_runs.values():
            with contextlib.suppress(Exception):  # the reason for being here matters more
                tracking.end_run(run_id, status)


def _create_limits() -> None:
    """Create the limits that the server does not have, and leave the others as somebody may have changed them."""
    with get_client(sync_client=True) as client:
        for name in (GPU, CHAMPION):
            try:
                client.read_global_concurrency_limit_by_name(name)
            except ObjectNotFound:
                with contextlib.suppress(ObjectAlreadyExists):  # by another flow run, just now
                    client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))


def gpu() -> contextlib.AbstractContextManager[Any]:
    """The right to use the GPU: a limit over all flow runs of a server.

    A run with a server of its own shares it among its own tasks; that server would not free what a killed run held.

    Raises:
        StoppedError: the flow is being stopped.
    """
    return _slot(GPU) if PREFECT_API_URL.value() else shared().gpu


@contextlib.contextmanager
def turn_to_promote() -> Iterator[None]:
    """The right to make a version champion: among the tasks of this run, and among all flow runs of a server.

    Raises:
        StoppedError: the flow is being stopped.
    """
    others = _slot(CHAMPION) if PREFECT_API_URL.value() else contextlib.nullcontext()
    with shared().registry, others:
        yield


@contextlib.contextmanager
def _slot(limit: str) -> Iterator[None]:
    """The server's permission under a limit.

    Prefect's own wait for it would not notice that the flow is being stopped, and its time-outs leave behind what the
    server grants in that moment. So it is asked for and, where others hold it, asked for again.
    """
    with contextlib.ExitStack() as held:
        while True:
            if shared().children.stopping.is_set():
                raise StoppedError
            try:
                held.enter_context(concurrency(limit, lease_duration=60, max_retries=0))
                break
            except ConcurrencySlotAcquisitionError as error:
                answer = getattr(error.__cause__, "response", None)
                if answer is None or answer.status_code != HTTPStatus.LOCKED:
                    raise
            shared().children.stopping.wait(WAIT)
        yield


def start_own_server() -> None:
    """Start the server that Prefect starts where none is named, out of reach of the terminal's Ctrl-C.

    A terminal interrupts all its processes at once. Without its server the flow could not record how it ended, and
    would try for minutes.

    Raises:
        UpstreamError: a server is named, and does not answer.
        UserError: what is named is no address of a server.
    """
    if named := PREFECT_API_URL.value():
        _check_server(named)
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which a child inherits
    try:
        get_client(sync_client=True)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _check_server(url: str) -> None:
    """Whether Prefect answers; the flow itself would say that it does not in a hundred lines."""
    try:
        with get_client(sync_client=True) as client:
            error = client.api_healthcheck()
    except Exception as raised:  # what an address leads to that is none depends on the address
        error = raised
    if error is None:
        return
    said, why = f"PREFECT_API_URL names {url}", str(error).partition("\n")[0] or type(error).__name__
    answer = getattr(error, "response", None)
    if answer is not None and answer.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        raise UserError(f"{said}, which wants another PREFECT_API_AUTH_STRING or PREFECT_API_KEY")
    down = isinstance(error, httpx.TransportError) and not isinstance(error, httpx.UnsupportedProtocol)
    if down or (answer is not None and answer.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR):
        raise UpstreamError(f"{said}, where Prefect does not answer ({why}): start it, or unset the variable")
    raise UserError(f"{said}: expected Prefect's API, such as http://HOST:4200/api ({why})")


# --- How a task fails -----------------------------------------------------------------------------------------------


def _retry_can_help(task: Task[..., Any], run: TaskRun, state: State) -> bool:
    """A failure says by its exit code whether it can. An exception is something like a database that was locked."""
    if shared().children.stopping.is_set():
        return False
    return state.data.transient if isinstance(state.data, dvc.Failure) else isinstance(state.data, Exception)


# Of every task that does something.
OPTIONS: dict[str, Any] = {
    "retries": len(PAUSES),
    "retry_condition_fn": _retry_can_help,
    "cache_policy": NO_CACHE,
    "persist_result": False,
}


def pause_before_retry() -> None:
    """Wait as long as is due before this attempt of a task."""
    # Prefect's own delay between attempts would sleep through a cancellation.
    attempt = task_run.run_count or 1
    if attempt > 1:
        shared().children.stopping.wait(PAUSES[min(attempt - 2, len(PAUSES) - 1)])


def failed(failure: dvc.Failure) -> State:
    return Failed(message=str(failure), data=failure)


def stopped(step: str) -> State:
    """The state of a task that has met `StoppedError`."""
    return Cancelled(message=f"{step}: stopped with the flow")


def refused(step: str, error: UserError | UpstreamError) -> State:
    """The state of a task that has met one of the library's errors."""
    return failed(dvc.Failure(step, str(error), error.exit_code))
