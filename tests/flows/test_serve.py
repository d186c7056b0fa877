"""`make serve`: all of it, on this machine alone, and nothing of it afterwards."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from finished import VARIANT, write_outputs
from prefect.client.orchestration import SyncPrefectClient

from ddpm import tracking
from flows.serve import _announce

ROOT = Path(__file__).parents[2]


def serve(where: Path, **environment: str) -> subprocess.Popen[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT", "MLFLOW_TRACKING"))}
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "flows.serve"],
        cwd=where,
        env={**clean, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("variable", ["MLFLOW_PORT", "PREFECT_SERVER_API_PORT"])
def test_a_port_in_use_is_named_with_the_variable_that_changes_it(tmp_path, variable, free_port):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ports = {"MLFLOW_PORT": str(free_port), "PREFECT_SERVER_API_PORT": str(free_port), variable: str(port)}
        process = serve(tmp_path, **ports)
        output, _ = process.communicate(timeout=180)
    assert process.returncode == 2
    assert f"serve: port {port} cannot be used" in output
    assert f"{variable}=" in output
    assert not (tmp_path / "mlflow").exists()


def test_a_port_that_is_none_is_named(tmp_path):
    output, _ = serve(tmp_path, MLFLOW_PORT="http").communicate(timeout=180)
    assert output == "serve: MLFLOW_PORT: expected a port number, found 'http'\n"


def test_the_links_lead_to_the_runs_and_models_of_the_store(finished, capsys):
    """First without a champion, then with one that is not the newest version."""
    page, model = "http://127.0.0.1:5001/#", "models/ddpm-dots"
    _announce(5001, 4201)
    assert page not in capsys.readouterr().out  # nothing is registered yet
    tracking.register(VARIANT)
    _announce(5001, 4201)
    assert f"ddpm-dots, newest version  {page}/{model}/versions/1\n" in capsys.readouterr().out
    tracking.promote(VARIANT)
    write_outputs(finished, fid=30.0, lock="2")
    assert tracking.register(VARIANT).version == 2
    _announce(5001, 4201)
    said = capsys.readouterr().out
    client = tracking.load_mlflow().MlflowClient()
    experiment = client.get_run(client.get_model_version("ddpm-dots", "1").run_id).info.experiment_id
    assert f"ddpm-dots, runs      {page}/experiments/{experiment}\n" in said
    assert f"ddpm-dots, versions  {page}/{model}\n" in said
    assert f"ddpm-dots, champion  {page}/{model}/versions/1\n" in said
    assert "runs of flows  http://127.0.0.1:4201/runs\n" in said
    assert "PREFECT_API_URL=http://127.0.0.1:4201/api prefect deployment run retrain/weekly\n" in said


@pytest.mark.slow
def test_everything_starts_and_ends_together(graph, free_port):
    for name in ("prefect.toml", "prefect.yaml"):
        (graph / name).write_text((ROOT / name).read_text())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        other_port = probe.getsockname()[1]
    process = serve(graph, MLFLOW_PORT=str(free_port), PREFECT_SERVER_API_PORT=str(other_port))
    try:
        assert process.stdout is not None
        said = []
        while not (said and "started" in said[-1] and "Worker" in said[-1]):
            said.append(process.stdout.readline())
            assert said[-1], "".join(said)
        assert f"http://127.0.0.1:{free_port}" in "".join(said)
        assert get(f"http://127.0.0.1:{free_port}/health") == b"OK"
        with SyncPrefectClient(f"http://127.0.0.1:{other_port}/api") as client:
            found = client._client.post("/deployments/filter", json={}).json()
        deployments = {each["name"]: each for each in found}
        assert deployments.keys() == {"weekly", "daily", "on-demand"}
        deployment = deployments["weekly"]
        assert deployment["schedules"][0]["schedule"]["cron"].split()[-1] == "1"
        assert deployment["job_variables"]["working_dir"] == str(graph)
        attack_mlflow(f"127.0.0.1:{free_port}")
        attack_prefect(f"127.0.0.1:{other_port}", deployment["id"], graph)
        own = processes_under(process.pid)
        assert len(own) >= 4
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=180)
    assert process.returncode == 0
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in own) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in own if Path(f"/proc/{pid}").exists()]
    with pytest.raises(urllib.error.URLError):
        get(f"http://127.0.0.1:{other_port}/api/health")


def attack_prefect(server: str, deployment: str, graph: Path) -> None:
    """Try what a web page can, to have the worker run a command; then see that the server's own page and CLI can."""
    path = f"/api/deployments/{deployment}/create_flow_run"
    run = json.dumps({"job_variables": {"command": f"touch {graph}/pwned", "env": {"X": "1"}}})
    evil, simple = {"Origin": "http://evil.example"}, {"Content-Type": "text/plain"}
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    refused = [
        ask(server, "OPTIONS", path, headers=evil | preflight),
        ask(server, "POST", path, run, evil | simple),
        ask(server, "POST", path, run, {"Origin": "null", **simple}),
        # A page whose own name resolves to this machine by now.
        ask(server, "POST", path, run, {"Host": "evil.example", "Origin": "http://evil.example", **simple}),
        ask(server, "GET", "/api/csrf-token?client=x", headers={"Host": f"evil.example:{server.split(':')[1]}"}),
        # Some program's page on this machine, and a form that hides where it is from: no CSRF token.
        ask(server, "POST", path, run, {"Origin": "http://127.0.0.1:1", **simple}),
        ask(server, "POST", path, run, simple),
        ask(server, "GET", "/api/events/in", headers={**evil, **WEBSOCKET}),
    ]
    assert [status for status, _ in refused] == [403] * len(refused), refused
    assert not any("access-control-allow-origin" in headers for _, headers in refused)

    own = {"Origin": f"http://{server}"}
    token = json.loads(get(f"http://{server}/api/csrf-token?client=page"))["token"]
    own |= {"Prefect-Csrf-Client": "page", "Prefect-Csrf-Token": token, "Content-Type": "application/json"}
    assert ask(server, "POST", "/api/flow_runs/count", "{}", own)[0] == 200
    assert json.loads(get(f"http://{server}/ui-settings"))["api_url"] == f"http://{server}/api"
    listed = subprocess.run(
        [sys.executable, "-m", "prefect", "work-pool", "inspect", "ddpm", "--output", "json"],
        cwd=graph, env={**os.environ, "PREFECT_API_URL": f"http://{server}/api"}, capture_output=True, text=True,
    )  # fmt: skip
    template = json.loads(listed.stdout)["base_job_template"]
    assert template["job_configuration"].keys().isdisjoint({"command", "env"})


def attack_mlflow(server: str) -> None:
    path, experiment = "/api/2.0/mlflow/experiments/create", json.dumps({"name": "evil"})
    for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}):
        for kind in ("text/plain", "application/json"):
            assert ask(server, "POST", path, experiment, {"Content-Type": kind, **headers})[0] == 403, headers
    assert ask(server, "GET", path.replace("create", "search"), headers={"Host": "evil.example"})[0] == 403


WEBSOCKET = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


def ask(
    server: str, method: str, path: str, body: str | None = None, headers: dict[str, str] | None = None
) -> tuple[int, set[str]]:
    """The answer's status, and the names of its headers."""
    connection = http.client.HTTPConnection(server, timeout=30)
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    names = {name.lower() for name in answer.headers}
    connection.close()
    return answer.status, names


def get(request: str | urllib.request.Request) -> bytes:
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read()


def processes_under(pid: int) -> set[int]:
    """A process and all that descend from it."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = dict(map(int, line.split()) for line in listed.splitlines())
    family = {pid}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    return family
