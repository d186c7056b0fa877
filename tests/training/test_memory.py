"""A process that the kernel really gives no more memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from trainings import set_training

# malloc would keep what it was given back, and the kernel counts that as used.
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}

TRAIN_IN_LITTLE_MEMORY = """
import re, resource, sys
import ddpm.stages.train
from ddpm.cli import main
used = 1024 * int(re.search(r"VmData:\\s+(\\d+)", open("/proc/self/status").read())[1])
resource.setrlimit(resource.RLIMIT_DATA, (used + 200_000_000, resource.RLIM_INFINITY))
sys.exit(main(["train", "tiny"]))
"""


def train_in_little_memory(project: Path, **options) -> subprocess.CompletedProcess[str]:
    set_training(project, steps=2, batch_size=1024, **options)
    return subprocess.run(
        [sys.executable, "-c", TRAIN_IN_LITTLE_MEMORY],
        cwd=project,
        env={**os.environ, **GIVE_BACK},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_out_of_memory_is_said_with_what_helps(project: Path):
    done = train_in_little_memory(project)
    assert done.returncode == 2
    [line] = [line for line in done.stderr.splitlines() if "ddpm train" in line]
    assert "tiny: out of memory with 1024 of a batch at once" in line
    assert "set models.tiny.training.micro_batch_size to 512, or to auto" in line
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_if_allowed_it_goes_on_in_parts(project: Path):
    done = train_in_little_memory(project, micro_batch_size="auto")
    assert done.returncode == 0, done.stderr
    assert "tiny: out of memory; from now on 512 images at once" in done.stdout
    assert (project / "models/tiny/model.safetensors").is_file()
