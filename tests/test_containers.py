"""The serve image, really built and run, with the engine that is here: docker, podman or buildah.

`make test-docker` runs these. They are skipped, and say why, where no engine runs, or where there is no base image and
no network to pull it from. IMAGE_BUILD_OPTIONS are passed on to the build, such as
`--build-arg PYTHON=mirror/python:3.11`.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from engines import base_of, build, call, find_engine, size, words
from finished import VARIANT, write_outputs

MOST_BYTES = 200e6
READY_SECONDS = 60

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def engine() -> str:
    return find_engine("docker", "podman", "buildah")


@pytest.fixture(scope="module")
def image(engine: str) -> str:
    """The serve image, built as its Dockerfile says."""
    return build(engine, "serve.Dockerfile", "ddpm-serve:test")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("container")
    write_outputs(root)
    deploy = root / "deploy" / VARIANT
    for path in (root, *root.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    for path in deploy.parents:
        if path == root.parent.parent:
            break
        path.chmod(0o755)
    return deploy


@contextmanager
def container(engine: str, image: str, model: Path, *command: str) -> Iterator[list[str]]:
    """A confined container with its model that runs the command; what runs a program in it."""
    if engine == "buildah":
        name = words("buildah", "from", image)
        inside = ["buildah", "run", "--isolation", "chroot", "-v", f"{model}:/model:ro", name, "--"]
        process = subprocess.Popen([*inside, "ddpm", *command], start_new_session=True, stderr=subprocess.DEVNULL)
    else:
        name = f"ddpm-test-{os.getpid()}"
        confined = ["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--network", "none"]
        mount = ["-v", f"{model}:/model:ro"]
        ran = [engine, "run", "--rm", "--name", name, *confined, *mount, image, *command]
        process = subprocess.Popen(ran, stderr=subprocess.DEVNULL)
        inside = [engine, "exec", name]
    try:
        yield inside
    finally:
        stop(engine, name, process, inside)


def stop(engine: str, name: str, process: subprocess.Popen[bytes], inside: list[str]) -> None:
    if engine == "buildah":
        # Its chroot has this machine's processes: ours is the one below the command that was started.
        children = words("ps", "-eo", "pid=,ppid=").splitlines()
        family = {process.pid}
        while more := {int(p) for p, parent in map(str.split, children) if int(parent) in family} - family:
            family |= more
        for pid in sorted(family - {process.pid}, reverse=True):
            call("kill", "-TERM", str(pid))
        process.wait(60)
        call("buildah", "rm", name)
    else:
        call(engine, "stop", "--time", "20", name)
        process.wait(60)


ASK = """
import json, sys, time
from urllib.request import Request, urlopen
end = time.monotonic() + float(sys.argv[1])
while True:
    try:
        urlopen("http://127.0.0.1:8000/ready", timeout=5)
        break
    except OSError:
        if time.monotonic() > end:
            raise
        time.sleep(0.1)
body = json.dumps({"n": 1, "seed": 0, "format": "png"}).encode()
headers = {"Content-Type": "application/json"}
answer = urlopen(Request("http://127.0.0.1:8000/v1/images", body, headers), timeout=30).read()
sys.stdout.write(answer[:8].hex())
"""


def test_the_serve_image_draws_an_image_and_weighs_what_the_documentation_says(engine: str, image: str, model: Path):
    started = time.monotonic()
    with container(engine, image, model, "serve", "/model", "--host", "0.0.0.0", "--port", "8000") as inside:
        deadline = time.monotonic() + READY_SECONDS
        while (asked := call(*inside, "python", "-c", ASK, str(READY_SECONDS), seconds=READY_SECONDS * 2)).returncode:
            assert time.monotonic() < deadline, asked.stderr
            time.sleep(0.2)
    assert asked.stdout == b"\x89PNG\r\n\x1a\n".hex()
    own = size(engine, image) - size(engine, base_of(engine, "serve.Dockerfile"))
    print(f"\nan image after {time.monotonic() - started:.1f} s; {own / 1e6:.0f} MB on top of the base")
    assert own < MOST_BYTES


def test_the_serve_image_says_what_it_is(engine: str, image: str):
    if engine == "buildah":
        labels = json.loads(words("buildah", "inspect", "--type", "image", image))["Docker"]["config"]["Labels"]
    else:
        labels = json.loads(words(engine, "image", "inspect", image))[0]["Config"]["Labels"]
    # Old versions of buildah take the label of an earlier build from their cache.
    assert labels["org.opencontainers.image.revision"] == "test" or engine == "buildah"
    assert labels["org.opencontainers.image.title"] == "ddpm-serve"


def test_a_container_without_a_model_ends_in_a_line(engine: str, image: str):
    if engine == "buildah":
        name = words("buildah", "from", image)
        done = call("buildah", "run", "--isolation", "chroot", name, "--", "ddpm", "serve", "/model")
        call("buildah", "rm", name)
    else:
        done = call(engine, "run", "--rm", "--read-only", image)
    assert done.returncode == 2
    assert "/model" in done.stderr
