"""The container engine that is installed here, and images built with it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUILD_SECONDS = 1800

# What the engines say when they can neither find a base image nor pull it.
_UNREACHABLE = (
    "initializing source",
    "image not known",
    "failed to resolve source metadata",
    "error pulling image",
    "pull access denied",
    "no such host",
    "connection refused",
    "network is unreachable",
    "temporary failure in name resolution",
)


def call(*command: str | Path, seconds: float = 60, cwd: Path = ROOT, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command, with these variables in its environment."""
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **more}, capture_output=True, text=True, timeout=seconds, check=False
    )


def words(*command: str) -> str:
    """What a command says; it has to succeed."""
    done = call(*command)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def find_engine(*names: str) -> str:
    """The first engine that answers; without one, the test is skipped."""
    reasons = []
    for name in names:
        if shutil.which(name) is None:
            reasons.append(f"{name} is not installed")
        elif (asked := call(name, "info")).returncode:
            reasons.append(f"{name}: {(asked.stderr.strip() or asked.stdout.strip()).splitlines()[-1]}")
        else:
            return name
    pytest.skip(f"no engine: {'; '.join(reasons)}")


def build(engine: str, dockerfile: str, tag: str) -> str:
    """The image of a Dockerfile, with the revision `test`; the test is skipped where its base cannot be had."""
    own = ["bud", "--format", "docker", "--layers", "--isolation", "chroot"] if engine == "buildah" else ["build"]
    options = [*shlex.split(os.environ.get("IMAGE_BUILD_OPTIONS", "")), "--build-arg", "REVISION=test"]
    started = time.monotonic()
    done = call(engine, *own, *options, "-f", f"docker/{dockerfile}", "-t", tag, ".", seconds=BUILD_SECONDS)
    skip_if_unreachable(engine, done)
    assert done.returncode == 0, done.stderr[-3000:]
    print(f"\n{engine} built {tag} in {time.monotonic() - started:.0f} s: {size(engine, tag) / 1e6:.0f} MB")
    return tag


def skip_if_unreachable(engine: str, done: subprocess.CompletedProcess[str]) -> None:
    """Skip the test where an image is neither here nor in reach."""
    if done.returncode and any(text in done.stderr.lower() for text in _UNREACHABLE):
        last = done.stderr.strip().splitlines()[-1]
        pytest.skip(f"{engine} lacks an image and reaches no registry: {last}")


def base_of(engine: str, dockerfile: str) -> str:
    """The image that PYTHON names, on this machine: BuildKit may have pulled it for the build alone."""
    default = re.search(r"^ARG PYTHON=(\S+)", (ROOT / "docker" / dockerfile).read_text(), flags=re.MULTILINE)
    given = re.search(r"PYTHON=(\S+)", os.environ.get("IMAGE_BUILD_OPTIONS", ""))
    assert default
    name = (given or default)[1]
    if engine != "buildah" and call(engine, "image", "inspect", name).returncode:
        done = call(engine, "pull", name, seconds=BUILD_SECONDS)
        assert done.returncode == 0, done.stderr
    return name


def size(engine: str, name: str) -> int:
    """Bytes of an image."""
    if engine == "buildah":
        (found,) = json.loads(words("buildah", "images", "--json", name))
        number, unit = found["size"].split()
        return int(float(number) * {"KB": 1e3, "MB": 1e6, "GB": 1e9}[unit])
    return int(words(engine, "image", "inspect", "--format", "{{.Size}}", name))
