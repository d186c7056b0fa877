"""The serve image without Docker: what docker/serve.lock lists, and this package, draw what torch draws."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dockerfile import parse, sources
from PIL import Image
from uv import find_uv_bin

import ddpm
from ddpm.config.params import load_params
from ddpm.evaluation.pictures import WIDTH, grid

ROOT = Path(__file__).parents[1]
IMAGE = parse(ROOT / "docker/serve.Dockerfile")
MOST_BYTES = 400e6

Run = Callable[..., subprocess.CompletedProcess[str]]


def uv(*arguments: str | Path) -> None:
    done = subprocess.run([find_uv_bin(), *arguments], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment, filled as the Dockerfile fills its image: the lock, and a wheel made of what it copies."""
    directory = tmp_path_factory.mktemp("bare")
    source, environment = directory / "source", directory / "environment"
    for name in sources(IMAGE):
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, target)
    # The tests' own environment holds the build backend, in the version that docker/build.lock names too.
    uv("build", "-q", "--wheel", "--no-build-isolation", "--python", sys.executable, "-o", directory / "wheels", source)
    uv("venv", "-q", "--python", sys.executable, environment)
    install = ("pip", "install", "-q", "--python", environment, "--no-deps")
    uv(*install, "--require-hashes", "-r", ROOT / "docker/serve.lock")
    uv(*install, "--no-index", next((directory / "wheels").glob("*.whl")))
    return environment


@pytest.fixture
def inside(bare: Path, tmp_path: Path) -> dict[str, Any]:
    """How a program runs in the bare environment: in an empty directory, with the image's variables and no others."""
    home = tmp_path / "home"
    home.mkdir()
    variables = dict(step.rest.split("=", 1) for step in IMAGE if step.keyword == "ENV")
    path = f"{bare / 'bin'}{os.pathsep}/usr/bin:/bin"
    return {
        "cwd": tmp_path,
        "env": {"PATH": path, "HOME": str(home), "OMP_NUM_THREADS": "1", **variables},
        "text": True,
    }


@pytest.fixture
def run(bare: Path, inside: dict[str, Any]) -> Run:
    """Run a program of the bare environment to its end."""

    def run(program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [bare / "bin" / program, *arguments], capture_output=True, timeout=120, check=False, **inside
        )

    return run


def of_image(keyword: str) -> list[str]:
    """The arguments of the image's one instruction of that name."""
    (step,) = (step for step in IMAGE if step.keyword == keyword)
    return step.words


def test_it_draws_what_torch_draws(run: Run, trained_template: Path, tmp_path: Path):
    deploy = trained_template / "deploy/tiny"
    for out in ("x.npz", "x.png"):
        done = run("ddpm", "sample", deploy, "--n", "4", "--seed", "5", "--out", out)
        assert done.returncode == 0, done.stderr
    images = np.load(tmp_path / "x.npz")["images"]
    plan = load_params(trained_template / "params.yaml").variant("tiny").sampling
    expected = ddpm.load(trained_template / "models/tiny").sampled_by(plan).sample(4, seed=5)
    assert images.shape == expected.shape == (4, 8, 8, 1)
    assert images.dtype == np.uint8
    assert np.abs(images.astype(int) - expected).max() <= 1
    assert images.std() > 0
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "x.png")), np.array(grid(images, 2, width=WIDTH)))


def test_nothing_else_is_in_it(run: Run, bare: Path):
    program = "import importlib.util as u, sys; print([m for m in sys.argv[1:] if u.find_spec(m)])"
    heavy = ["torch", "torchvision", "onnx", "mlflow", "prefect", "dvc", "yaml", "sklearn"]
    assert run("python", "-c", program, *heavy, "onnxruntime").stdout.strip() == "['onnxruntime']"
    size = sum(path.stat().st_size for path in bare.rglob("*") if path.is_file() and not path.is_symlink())
    assert size < MOST_BYTES


def test_what_would_need_more_is_said_in_a_line(run: Run, trained_template: Path):
    done = run("ddpm", "sample", trained_template / "models/tiny", "--n", "1", "--out", "x.npz")
    assert done.returncode == 2
    assert "ddpm[train]" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.fixture
def served(bare: Path, inside: dict[str, Any], run: Run, tmp_path: Path) -> Iterator[Callable[[Path], Any]]:
    """Start the image's own command on a model and a free port; returns the process, its health check, its address."""
    started: list[subprocess.Popen[str]] = []
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])

    def start(model: Path) -> tuple[subprocess.Popen[str], Callable[[], bool], str]:
        places = {"/model": str(model), "0.0.0.0": "127.0.0.1", "8000": port}
        program, *arguments = (places.get(word, word) for word in [*of_image("ENTRYPOINT"), *of_image("CMD")])
        log = (tmp_path / "log").open("w")
        started.append(subprocess.Popen([bare / "bin" / program, *arguments], stderr=log, **inside))
        check = [word.replace("8000", port) for word in of_image("HEALTHCHECK")]
        return started[-1], lambda: run(*check).returncode == 0, f"http://127.0.0.1:{port}"

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_the_images_own_command_serves_and_its_health_check_knows(served: Any, trained_template: Path, tmp_path: Path):
    process, is_healthy, address = served(trained_template / "deploy/tiny")
    deadline = time.monotonic() + 120
    while not is_healthy():
        assert process.poll() is None, (tmp_path / "log").read_text()
        assert time.monotonic() < deadline
    with urllib.request.urlopen(address) as page:
        assert b"<title>ddpm</title>" in page.read()
    process.terminate()
    assert process.wait(120) == 0
    assert not is_healthy()
    # Telemetry would leave an identifier there.
    assert list((tmp_path / "home").rglob("*")) == []


@pytest.mark.parametrize("fault", ["no model", "half a model", "another shape"])
def test_a_container_without_a_model_that_draws_ends_in_a_line(
    served: Any, trained_template: Path, tmp_path: Path, fault: str
):
    model = tmp_path / "model"
    shutil.copytree(trained_template / "deploy/tiny", model)
    denoiser, facts = model / "denoiser.onnx", model / "sampler.json"
    if fault == "no model":
        shutil.rmtree(model)
    elif fault == "half a model":
        denoiser.write_bytes(denoiser.read_bytes()[: denoiser.stat().st_size // 2])
    elif fault == "another shape":
        facts.write_text(facts.read_text().replace('"shape": [\n    8,', '"shape": [\n    9,'))
    process, is_healthy, _ = served(model)
    assert process.wait(120) == 2
    assert len((tmp_path / "log").read_text().splitlines()) == 1
    assert not is_healthy()
