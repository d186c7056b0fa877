"""MLflow's and Prefect's servers and a worker with the schedule of prefect.yaml, on this machine alone.

`python -m flows.serve` runs them until Ctrl-C or SIGTERM, and then ends all of them. MLFLOW_PORT and
PREFECT_SERVER_API_PORT choose other ports.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.settings import PREFECT_API_AUTH_STRING
from prefect.states import Cancelling, Crashed

from ddpm import tracking
from ddpm.errors import UpstreamError, UserError
from flows.processes import Children, StoppedError

HOST = "127.0.0.1"
POOL = "ddpm"

_PREFECT = [sys.executable, "-m", "prefect"]
# What a flow run may choose of its process. Not the command, nor its environment.
_JOB = Path(__file__).with_name("work-pool.json")
_START_SECONDS = 180
_CANCEL_SECONDS = 45
_UNFINISHED = [StateType.RUNNING, StateType.CANCELLING]


@dataclass
class Service:
    """A server or a worker, running in the background."""

    name: str
    children: Children
    ended: threading.Event
    """Set when the service ends, by itself or not."""
    words: deque[str] = field(default_factory=lambda: deque(maxlen=15))
    """The last lines of its output."""

    def start(
        self, command: list[str], env: Mapping[str, str], show: Callable[[str], None] = lambda line: None
    ) -> None:
        threading.Thread(target=self._run, args=(command, env, show), name=self.name, daemon=True).start()

    def _run(self, command: list[str], env: Mapping[str, str], show: Callable[[str], None]) -> None:
        def on_line(line: str) -> None:
            self.words.append(line)
            show(line)

        try:
            code = self.children.run(command, on_line, env)
            print("\n".join([*self.words, f"{self.name} has ended by itself, with exit code {code}"]), file=sys.stderr)
        except StoppedError:
            pass
        finally:
            self.ended.set()

    def wait_until_healthy(self, url: str) -> None:
        """Return when the service answers, or has ended."""
        deadline = time.monotonic() + _START_SECONDS
        while not self.ended.wait(0.3):
            try:
                with urllib.request.urlopen(url, timeout=5):
                    return
            except OSError:
                if time.monotonic() > deadline:
                    raise UserError(f"{self.name} does not answer at {url} after {_START_SECONDS} s") from None


def serve() -> int:
    """Start everything, wait for the end of any of it or for a signal, and end all of it."""
    mlflow_port, prefect_port = _port("MLFLOW_PORT", 5000), _port("PREFECT_SERVER_API_PORT", 4200)
    ended = threading.Event()
    asked_to_end = threading.Event()

    def ask_to_end(*_: object) -> None:
        asked_to_end.set()
        ended.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, ask_to_end)

    # The worker is ended first, so that what it runs can still say how it ended.
    servers, workers = Children(), Children()
    env = {"PREFECT_API_URL": f"http://{HOST}:{prefect_port}/api"}
    try:
        mlflow, prefect = Service("MLflow", servers, ended), Service("Prefect", servers, ended)
        print("starting MLflow and Prefect …", flush=True)
        tracking.load_mlflow()  # makes the store's folder
        # The jobs that MLflow's server can run are others' affair, and would cost seven processes.
        mlflow_env = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **tracking.server_environment()}
        mlflow.start(_mlflow_command(mlflow_port), mlflow_env)
        prefect.start(_prefect_command(prefect_port), {})
        mlflow.wait_until_healthy(f"http://{HOST}:{mlflow_port}/health")
        prefect.wait_until_healthy(f"http://{HOST}:{prefect_port}/api/health")
        if not ended.is_set():
            _write_off_runs(env["PREFECT_API_URL"])
            _deploy(env)
            worker = Service("the worker", workers, ended)
            worker.start([*_PREFECT, "worker", "start", "--pool", POOL, "--type", "process"], env, print)
            _announce(mlflow_port, prefect_port)
        ended.wait()
    finally:
        print("stopping …", flush=True)
        with contextlib.suppress(Exception):  # a server that has ended has nobody to ask
            _cancel_runs(env["PREFECT_API_URL"])
        workers.stop()
        servers.stop()
    return 0 if asked_to_end.is_set() else 1


def _port(variable: str, default: int) -> int:
    """The port that the environment names, if it is free."""
    text = os.environ.get(variable, str(default))
    if not (text.isdecimal() and 0 < int(text) < 2**16):
        raise UserError(f"{variable}: expected a port number, found {text!r}")
    with socket.socket() as probe:
        # Without this, connections of a server that has just ended would still count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, int(text)))
        except OSError as error:
            raise UserError(f"port {text} cannot be used ({error.strerror}); choose another: {variable}=…") from None
    return int(text)


def _mlflow_command(port: int) -> list[str]:
    """The tracking server, over the same database and files that are used without a server."""
    store = tracking.store_uri()
    if store.startswith("http"):
        raise UserError(f"MLFLOW_TRACKING_URI names the server {store}: unset it to have one here")
    artifacts = (Path("mlflow") / "artifacts").absolute().as_uri()
    options = {"--host": HOST, "--port": str(port), "--workers": "1"}
    options |= {"--backend-store-uri": store, "--default-artifact-root": artifacts}
    return [sys.executable, "-m", "mlflow", "server", "--no-serve-artifacts", *_flat(options.items())]


def _prefect_command(port: int) -> list[str]:
    """The server that plans the runs. Whoever may use it decides what the worker runs, so no web page may."""
    names = f"{HOST}:{port},localhost:{port}"
    server = Path(__file__).with_name("prefect_server.py")
    return [sys.executable, str(server), "--host", HOST, "--port", str(port), "--allowed-hosts", names]


def _flat(pairs: Iterable[tuple[str, str]]) -> list[str]:
    return [word for pair in pairs for word in pair]


def _deploy(env: Mapping[str, str]) -> None:
    """Make the work pool and the deployments of prefect.yaml, or bring them up to date."""
    for command in (
        ["work-pool", "create", POOL, "--type", "process", "--overwrite", "--base-job-template", str(_JOB)],
        ["--no-prompt", "deploy", "--all"],
    ):
        # prefect.yaml has $PWD, which only a shell keeps right.
        environment = {**os.environ, **env, "PWD": str(Path.cwd())}
        done = subprocess.run(
            [*_PREFECT, *command], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        if done.returncode:
            raise UserError(f"prefect {' '.join(command)}: {(done.stderr or done.stdout).strip()}")


def _client(api: str) -> SyncPrefectClient:
    """With the password that the environment or Prefect's profile holds, if the server asks for one."""
    return SyncPrefectClient(api, auth_string=PREFECT_API_AUTH_STRING.value())


def _unfinished_runs(client: SyncPrefectClient) -> list[FlowRun]:
    return client.read_flow_runs(
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_UNFINISHED))),
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL])),
    )


def _cancel_runs(api: str) -> None:
    """Cancel what the worker runs, and wait until it has stopped: the worker, when it is ended, would just kill it."""
    deadline = time.monotonic() + _CANCEL_SECONDS
    with _client(api) as client:
        client.update_work_pool(POOL, WorkPoolUpdate(is_paused=True))  # what waits must not start now
        for run in _unfinished_runs(client):
            client.set_flow_run_state(run.id, Cancelling(message="`make serve` was stopped"))
        while _unfinished_runs(client) and time.monotonic() < deadline:
            time.sleep(0.5)


def _write_off_runs(api: str) -> None:
    """Record that what a killed worker ran has ended; else the schedule would wait for it."""
    with _client(api) as client:
        for run in _unfinished_runs(client):
            client.set_flow_run_state(run.id, Crashed(message="the worker that ran it has ended"))


def _links(mlflow: str) -> str:
    """The pages of the experiments, and of the registered models' champions or else newest versions."""
    pages = []
    try:
        versions = tracking.registered_versions()  # the newest of a model first
    except (UserError, UpstreamError):
        return ""
    for model in dict.fromkeys(version.model for version in versions):
        own = [version for version in versions if version.model == model]
        shown = next((version for version in own if "champion" in version.aliases), own[0])
        what = "champion" if "champion" in shown.aliases else "newest version"
        pages.append((f"{model}, runs", f"{mlflow}/#/experiments/{shown.experiment_id}"))
        pages.append((f"{model}, versions", f"{mlflow}/#/models/{quote(model)}"))
        pages.append((f"{model}, {what}", f"{mlflow}/#/models/{quote(model)}/versions/{shown.version}"))
    width = max((len(title) for title, _ in pages), default=0)
    return "".join(f"    {title:<{width}}  {page}\n" for title, page in pages)


def _announce(mlflow_port: int, prefect_port: int) -> None:
    mlflow, prefect = f"http://{HOST}:{mlflow_port}", f"http://{HOST}:{prefect_port}"
    print(
        f"\n  MLflow   {mlflow}\n{_links(mlflow)}"
        f"  Prefect  {prefect}\n"
        f"    runs of flows  {prefect}/runs\n    deployments    {prefect}/deployments\n\n"
        "  The flows `retrain` and `monitor` run as prefect.yaml says; to have one run now:\n"
        f"  PREFECT_API_URL=http://{HOST}:{prefect_port}/api prefect deployment run retrain/weekly\n\n"
        "  Ctrl-C stops all of it.\n",
        flush=True,
    )


def main() -> int:
    try:
        return serve()
    except UserError as error:
        print(f"serve: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
