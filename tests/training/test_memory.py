"""A process that the kernel really gives no more memory."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from trainings import set_training

# malloc would keep what it was given back, and the kernel counts that as used.
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}

# The limit is what the process uses when it has imported everything, and some bytes more.
IN_LITTLE_MEMORY = """
import re, resource, sys
import ddpm.stages.dry_run
from ddpm.cli import main
what, more = sys.argv[1], int(sys.argv[2])
counted = {"DATA": "VmData", "AS": "VmSize"}[what]
used = 1024 * int(re.search(counted + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
resource.setrlimit(getattr(resource, "RLIMIT_" + what), (used + more, resource.RLIM_INFINITY))
sys.exit(main(sys.argv[3:]))
"""


def in_little_memory(project: Path, what: str, more: int, *command: str, **options) -> subprocess.CompletedProcess[str]:
    set_training(project, **{"steps": 2, **options})
    return subprocess.run(
        [sys.executable, "-c", IN_LITTLE_MEMORY, what, str(more), *command],
        cwd=project,
        env={**os.environ, **GIVE_BACK},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def train_in_little_memory(project: Path, **options) -> subprocess.CompletedProcess[str]:
    return in_little_memory(project, "DATA", 200_000_000, "train", "tiny", batch_size=1024, **options)


def large(project: Path) -> None:
    """34 million weights of 137 MB: a VAE is quick."""
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["models"]["tiny"] |= {
        "network": {"kind": "vae", "hidden": [4096, 4096], "latent": 4},
        "process": {"timesteps": 1, "schedule": "cosine", "prediction": "x0", "variance": "fixed_small"},
        "objective": {"loss": "elbo"},
        "sampling": {"steps": 1},
    }
    (project / "params.yaml").write_text(yaml.safe_dump(params))


# The kernel gives as much as: nothing beyond the imports, the weights alone, the weights and their averages.
GIVEN = {"weights": 50_000_000, "averages": 200_000_000, "moments": 340_000_000}


@pytest.mark.slow
@pytest.mark.parametrize("given", GIVEN.values(), ids=[f"not even the {name}" for name in GIVEN])
def test_a_network_that_does_not_fit_is_said_with_what_helps(project: Path, given: int):
    large(project)
    done = in_little_memory(project, "DATA", given, "train", "tiny")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    [line] = [line for line in done.stderr.splitlines() if "ddpm train" in line]
    assert "tiny: out of memory: weights, gradients, moments and averages take 6" in line
    assert line.endswith("make models.tiny.network smaller, for example its hidden")


@pytest.mark.slow
def test_what_the_process_may_have_is_looked_at_before_it_is_taken(project: Path):
    """`ulimit -v`, which the kernel's figure of free memory says nothing of."""
    large(project)
    done = in_little_memory(project, "AS", 500_000_000, "train", "tiny")
    assert done.returncode == 2, done.stderr
    assert re.search(r"take 6\d\d MiB, and 4\d\d MiB are free; make models.tiny.network smaller", done.stderr)
    assert "parameters on cpu" not in done.stdout, "nothing has begun"


@pytest.mark.slow
@pytest.mark.parametrize(("what", "given"), [("AS", 500_000_000), ("DATA", 50_000_000), ("DATA", 340_000_000)])
def test_a_dry_run_of_what_does_not_fit_is_an_estimate(project: Path, what: str, given: int):
    large(project)
    done = in_little_memory(project, what, given, "train", "tiny", "--dry-run")
    assert done.returncode == 0, done.stderr
    head, parameters, operations, memory = done.stdout.splitlines()
    assert "no trial for want of memory" in head
    assert "34,144,328" in parameters
    assert "GFLOP for one of the images" in operations
    assert re.search(r"6\d\d MiB for weights, gradients, moments and averages, .* MiB are free", memory)
    assert memory.endswith("make models.tiny.network smaller, for example its hidden")


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
