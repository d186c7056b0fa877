"""What a web page can try on the pages of this machine, and what the servers answer."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from prefect.client.orchestration import SyncPrefectClient


def attack_prefect(server: str, deployment: str, folder: Path) -> None:
    """Try what a web page can, to have the worker run a command; then see that the server's own page and CLI can."""
    path = f"/api/deployments/{deployment}/create_flow_run"
    run = json.dumps({"job_variables": {"command": f"touch {folder}/pwned", "env": {"X": "1"}}})
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
        cwd=folder, env={**os.environ, "PREFECT_API_URL": f"http://{server}/api"}, capture_output=True, text=True,
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


def deployments_of(server: str) -> dict[str, dict]:
    """What Prefect's server can run, by name, as its own client sees it."""
    with SyncPrefectClient(f"http://{server}/api") as client:
        found = client._client.post("/deployments/filter", json={}).json()
    return {each["name"]: each for each in found}


def planned_runs(server: str, seconds: float = 90) -> int:
    """How many runs the schedules have planned, as soon as there are any."""
    planned = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
    deadline = time.monotonic() + seconds
    with SyncPrefectClient(f"http://{server}/api") as client:
        while not (count := client._client.post("/flow_runs/count", json=planned).json()):
            if time.monotonic() > deadline:
                break
            time.sleep(0.5)
    return count
