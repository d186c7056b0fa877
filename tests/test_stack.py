"""The whole of docker/compose.yaml, started as docs/deployment.md says, used, attacked and ended.

`make test-docker` runs these. They are skipped, and say why, where there is no docker with Compose, or an image is
neither here nor in reach. They build `ddpm-servers:test` and `ddpm-train:test` (8 GB, the second with torch), pass
IMAGE_BUILD_OPTIONS on to the builds, and end and remove everything they start; the images stay.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from attacks import attack_mlflow, attack_prefect, deployments_of, get, planned_runs
from engines import ROOT, build, call, find_engine, skip_if_unreachable, words
from tiny import TINY_PARAMS, write_params

MODEL = "models:/ddpm-digits@champion"
# What Compose, a shell, a URI or SQL would take for something of their own.
PASSWORD = r"""'a$b ${HOME} #c"d%:/@\'e'"""

# A first build and start take minutes.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def inspect(*names: str) -> list[dict]:
    """What docker says of containers and images."""
    return json.loads(words("docker", "inspect", *names)) if names else []


@dataclass(frozen=True)
class Stack:
    """A running stack of a checkout of its own."""

    checkout: Path
    project: str
    mlflow: str
    prefect: str

    def compose(self, *command: str, seconds: float = 120) -> subprocess.CompletedProcess[str]:
        files = ["-f", "docker/compose.yaml", "-f", "images.yaml"]
        return call("docker", "compose", "-p", self.project, *files, *command, seconds=seconds, cwd=self.checkout)

    def up(self) -> subprocess.CompletedProcess[str]:
        return self.compose("up", "--no-build", "--detach", "--wait", seconds=900)

    def inside(self, service: str, *command: str, seconds: float = 120) -> str:
        """What a command says in a service's container."""
        done = self.compose("exec", "-T", service, *command, seconds=seconds)
        assert done.returncode == 0, f"{done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout.strip()

    def containers(self, *options: str) -> list[str]:
        own = f"label=com.docker.compose.project={self.project}"
        return words("docker", "ps", "--quiet", *options, "--filter", own).split()

    def volumes(self) -> list[str]:
        containers = self.containers("--all")
        mounts = [mount for each in inspect(*containers) for mount in each["Mounts"]]
        return [mount["Name"] for mount in mounts if mount["Type"] == "volume"]

    def set(self, name: str, value: str) -> None:
        """Write a setting into docker/.env."""
        path = self.checkout / "docker/.env"
        text, count = re.subn(rf"^{name}=.*", lambda _: f"{name}={value}", path.read_text(), flags=re.MULTILINE)
        assert count == 1
        path.write_text(text)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """All services, healthy; afterwards nothing of them is left."""
    find_engine("docker")
    if call("docker", "compose", "version").returncode:
        pytest.skip("docker has no compose")
    build("docker", "servers.Dockerfile", "ddpm-servers:test")
    build("docker", "train.Dockerfile", "ddpm-train:test")
    ports = free_ports(2)
    addresses = [f"127.0.0.1:{port}" for port in ports]
    stack = Stack(tmp_path_factory.mktemp("stack") / "checkout", f"ddpm-test-{os.getpid()}", *addresses)
    fill(stack, *ports)
    try:
        started = time.monotonic()
        done = stack.up()
        skip_if_unreachable("docker", done)
        assert done.returncode == 0, f"{done.stderr[-2000:]}{stack.compose('logs', '--tail', '30').stdout[-6000:]}"
        print(f"\nthe stack is healthy after {time.monotonic() - started:.0f} s")
        yield stack
    finally:
        volumes = stack.volumes()
        ended = stack.compose("down", "--volumes", "--timeout", "60", seconds=300)
    assert ended.returncode == 0, ended.stderr
    assert stack.containers("--all") == []
    assert not set(volumes) & set(words("docker", "volume", "ls", "--quiet").split())


def test_compose_reads_a_quoted_password_of_any_characters(tmp_path: Path):
    """Where Compose is installed, without an image."""
    find_engine("docker")
    if call("docker", "compose", "version").returncode:
        pytest.skip("docker has no compose")
    example = (ROOT / "docker/.env.example").read_text().replace("=''", f"={PASSWORD}")
    (tmp_path / "env").write_text(re.sub("^(DDPM_.ID)=", r"\1=1000", example, flags=re.MULTILINE))
    read = ["--env-file", str(tmp_path / "env"), "-f", "docker/compose.yaml", "config", "--format", "json"]
    services = json.loads(words("docker", "compose", *read))["services"]
    # In this output a dollar is written twice.
    assert services["mlflow"]["environment"]["PGPASSWORD"].replace("$$", "$") == PASSWORD[1:-1].replace("\\'", "'")


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def fill(stack: Stack, mlflow_port: int, prefect_port: int) -> None:
    """A checkout with a pipeline of seconds, and docker/.env filled in as its example shows."""
    listed = words("git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (stack.checkout / name).parent.mkdir(parents=True, exist_ok=True)
            (stack.checkout / name).write_bytes((ROOT / name).read_bytes())
            (stack.checkout / name).chmod((ROOT / name).stat().st_mode)
    write_params(stack.checkout, TINY_PARAMS)
    own = {"image": "ddpm-servers:test"}
    services = {"bucket": own, "mlflow": own, "prefect": own, "worker": {"image": "ddpm-train:test"}}
    (stack.checkout / "images.yaml").write_text(yaml.safe_dump({"services": services}))

    (stack.checkout / "docker/.env").write_text((ROOT / "docker/.env.example").read_text())
    for name in ("POSTGRES_PASSWORD", "MLFLOW_DB_PASSWORD", "PREFECT_DB_PASSWORD", "S3_SECRET_ACCESS_KEY"):
        stack.set(name, PASSWORD)
    stack.set("S3_ACCESS_KEY_ID", "'first-key'")
    # Root would not show what the worker may not write.
    owner = os.getuid() or 10001
    for name, value in (("DDPM_UID", owner), ("DDPM_GID", owner if os.getuid() == 0 else os.getgid())):
        stack.set(name, str(value))
    for name, value in (("MLFLOW_PORT", mlflow_port), ("PREFECT_PORT", prefect_port), ("WORKER_MEMORY", "6g")):
        stack.set(name, str(value))
    git = ["git", "-C", str(stack.checkout), "-c", "user.name=test", "-c", "user.email=test@example.invalid"]
    for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "all of it"]):
        words(*git, *command)
    if os.getuid() == 0:
        words("chown", "-R", f"{owner}:{owner}", str(stack.checkout))


@pytest.fixture(scope="module")
def promoted(stack: Stack) -> Stack:
    """The stack, after its worker has run the weekly flow: from raw images to the champion."""
    run = ["prefect", "deployment", "run", "retrain/weekly", "--watch"]
    done = stack.compose("exec", "-T", "worker", *run, seconds=1200)
    log = stack.compose("logs", "--no-log-prefix", "--tail", "80", "worker").stdout
    assert done.returncode == 0, f"{done.stdout[-2000:]}{done.stderr[-2000:]}{log[-6000:]}"
    return stack


def test_every_service_answers(stack: Stack):
    assert get(f"http://{stack.mlflow}/health") == b"OK"
    assert json.loads(get(f"http://{stack.prefect}/api/ready"))
    health = "from urllib.request import urlopen; print(urlopen('http://127.0.0.1:8080/health').status)"
    assert stack.inside("worker", "python", "-c", health) == "200"
    buckets = "import boto3; print([bucket['Name'] for bucket in boto3.client('s3').list_buckets()['Buckets']])"
    assert stack.inside("mlflow", "python", "-c", buckets) == "['mlflow']"
    assert deployments_of(stack.prefect).keys() == {"weekly", "daily", "on-demand"}


def test_the_schedules_plan_runs(stack: Stack):
    assert planned_runs(stack.prefect)


def test_a_server_opens_its_own_database_with_its_password_and_not_the_others(stack: Stack):
    connect = "import os, psycopg2; psycopg2.connect(host='postgres', user='mlflow', dbname='{}')"
    assert stack.inside("mlflow", "python", "-c", connect.format("mlflow")) == ""
    done = stack.compose("exec", "-T", "mlflow", "python", "-c", connect.format("prefect"))
    assert "permission denied" in done.stderr
    done = stack.compose("exec", "-T", "-e", "PGPASSWORD=wrong", "mlflow", "python", "-c", connect.format("mlflow"))
    assert "password authentication failed" in done.stderr


def test_the_limits_are_set_on_what_runs(stack: Stack):
    running = inspect(*stack.containers())
    assert {each["Config"]["Labels"]["com.docker.compose.service"] for each in running} == {
        "postgres", "store", "mlflow", "prefect", "worker"
    }  # fmt: skip
    for each in running:
        limits, name = each["HostConfig"], each["Name"]
        assert limits["Memory"] == (6 if "worker" in name else 2) * 2**30, name
        assert 0 < limits["PidsLimit"] <= 4096, name
        assert limits["ReadonlyRootfs"], name
        assert limits["CapDrop"] == ["ALL"], name
        assert bool(limits["CapAdd"]) == ("postgres" in name), name
        assert limits["SecurityOpt"] == ["no-new-privileges:true"], name
        assert each["State"]["Health"]["Status"] == "healthy", name
    for service in ("mlflow", "prefect", "worker"):
        status = dict(line.split(":\t", 1) for line in stack.inside(service, "cat", "/proc/1/status").splitlines())
        assert int(status["CapEff"], 16) == 0
        assert status["Uid"].split()[0] != "0"
        assert "Read-only file system" in stack.compose("exec", "-T", service, "touch", "/opt/written").stderr


@pytest.mark.parametrize("name", ["servers", "train"])
def test_the_images_say_what_they_are(stack: Stack, name: str):
    labels = inspect(f"ddpm-{name}:test")[0]["Config"]["Labels"]
    assert labels["org.opencontainers.image.title"] == f"ddpm-{name}"
    assert labels["org.opencontainers.image.revision"] == "test"


def test_a_web_page_has_nothing_run(stack: Stack):
    attack_prefect(stack.prefect, deployments_of(stack.prefect)["weekly"]["id"], stack.checkout)
    attack_mlflow(stack.mlflow)


def test_a_client_outside_gets_the_champions_files(promoted: Stack, tmp_path: Path):
    """With MLflow's own command and the server's address alone: no key, and no way to the store."""
    download(promoted, tmp_path)
    assert (tmp_path / "artifacts/tiny/sampler.onnx").stat().st_size
    assert (tmp_path / "artifacts/tiny/denoiser.onnx").read_bytes() == (
        promoted.checkout / "deploy/tiny/denoiser.onnx"
    ).read_bytes()


def test_new_keys_of_the_store_stop_nothing(promoted: Stack, tmp_path: Path):
    promoted.set("S3_ACCESS_KEY_ID", "'second-key'")
    promoted.set("S3_SECRET_ACCESS_KEY", "'another $secret #2'")
    done = promoted.up()
    assert done.returncode == 0, f"{done.stderr[-2000:]}{promoted.compose('logs', 'bucket').stdout[-2000:]}"
    download(promoted, tmp_path)


def download(stack: Stack, folder: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "AWS"))}
    command = ["-m", "mlflow", "artifacts", "download", "--artifact-uri", MODEL, "--dst-path", str(folder)]
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env={**clean, "MLFLOW_TRACKING_URI": f"http://{stack.mlflow}"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_servers_end_by_themselves_when_they_are_asked_to(stack: Stack):
    """137 would be a server that was killed because it had not ended in time."""
    assert stack.compose("stop", "mlflow", "prefect").returncode == 0
    ended = [each for each in inspect(*stack.containers("--all")) if re.search("-(mlflow|prefect)-", each["Name"])]
    assert len(ended) == 2
    for each in ended:
        assert each["State"]["Status"] == "exited"
        assert each["State"]["ExitCode"] in (0, 143), each["Name"]
