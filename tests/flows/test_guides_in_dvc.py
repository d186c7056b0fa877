"""The real graph with a guide: the guide comes first, and a new one reruns what it guides and nothing else."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
from tiny import TINY_PARAMS, write_params

from ddpm.files import read_json, sha256_of

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CLASSIFIER = {
    "network": {
        "kind": "classifier",
        "width": 8,
        "multipliers": [1, 2],
        "blocks": 1,
        "attention_resolutions": [4],
        "groups": 4,
        "head_channels": 8,
    },
    "condition": {"label": {"drop": 0}},
    "codec": {},
    "process": {"timesteps": 50, "variance": "fixed_small"},
    "objective": {"loss": "cross_entropy"},
    "training": {"steps": 3, "batch_size": 8, "warmup_steps": 1, "checkpoint_every": 2, "log_every": 1},
    "sampling": {},
}


def described(steps: int) -> dict:
    """Two models and a classifier that guides one of them."""
    tiny = TINY_PARAMS["models"]["tiny"] | {"training": {**CLASSIFIER["training"]}}
    guided = {**deepcopy(tiny), "sampling": {"steps": 2, "guide": "models/classifier", "guidance_scale": 3.0}}
    classifier = {**deepcopy(CLASSIFIER), "training": {**CLASSIFIER["training"], "steps": steps}}
    models = {"plain": deepcopy(tiny), "guided": guided, "classifier": classifier}
    return {**TINY_PARAMS, "variants": ["plain", "guided"], "guides": ["classifier"], "models": models}


def ran(project: Path, *targets: str) -> list[str]:
    """The stages that `dvc repro` runs, in order."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "repro", *targets],
        cwd=project,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return re.findall(r"^Running stage '(.*)':$", done.stdout, re.MULTILINE)


@pytest.fixture
def pipeline(project: Path) -> Path:
    """The tiny project with the real graph, under DVC."""
    shutil.copy(ROOT / "dvc.yaml", project)
    shutil.copytree(ROOT / "ddpm", project / "ddpm", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q", "--no-scm"], cwd=project, check=True)
    write_params(project, described(3))
    return project


def test_a_guide_is_trained_first_and_a_new_one_measures_anew_what_it_guides(pipeline: Path):
    targets = ("evaluate@plain", "evaluate@guided", "export@guided")
    first = ran(pipeline, *targets)
    assert {"train@guided", "train-guide@classifier", "guide@guided-classifier", "guide@plain-classifier"} < set(first)
    for earlier, later in (
        ("train-guide@classifier", "guide@guided-classifier"),
        ("train@guided", "guide@guided-classifier"),
        ("guide@guided-classifier", "evaluate@guided"),
        ("guide@guided-classifier", "export@guided"),
        ("guide@plain-classifier", "evaluate@plain"),
    ):
        assert first.index(earlier) < first.index(later)
    protocol = read_json(pipeline / "reports/guided/protocol.json")
    assert protocol["guide"] == f"classifier {sha256_of(pipeline / 'models/classifier/model.safetensors')[:12]}"
    assert "guide" not in read_json(pipeline / "reports/plain/protocol.json")
    assert set(ran(pipeline, *targets)) <= {"fetch"}

    write_params(pipeline, described(5))
    again = set(ran(pipeline, *targets)) - {"fetch"}
    guides = {"train-guide@classifier", "guide@guided-classifier", "guide@plain-classifier"}
    assert again == {*guides, "evaluate@guided", "export@guided"}
    assert read_json(pipeline / "reports/guided/protocol.json")["guide"] != protocol["guide"]
