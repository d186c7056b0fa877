"""`make serve`: all of it, on this machine alone, and nothing of it afterwards."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
from pathlib import Path

import pytest
from attacks import attack_mlflow, attack_prefect, deployments_of, get, planned_runs
from finished import VARIANT, write_outputs

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
        deployments = deployments_of(f"127.0.0.1:{other_port}")
        assert deployments.keys() == {"weekly", "daily", "on-demand"}
        deployment = deployments["weekly"]
        assert deployment["schedules"][0]["schedule"]["cron"].split()[-1] == "1"
        assert deployment["job_variables"]["working_dir"] == str(graph)
        assert planned_runs(f"127.0.0.1:{other_port}")
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


def processes_under(pid: int) -> set[int]:
    """A process and all that descend from it."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = dict(map(int, line.split()) for line in listed.splitlines())
    family = {pid}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    return family
