"""What a training's checkpoints depend on: what decides the weights, and nothing else."""

import csv
from pathlib import Path

import pytest
import torch
import yaml
from tiny import run_cli
from trainings import LONG, hashes, set_training

from ddpm import closure
from ddpm.config.base import decisive
from ddpm.config.model import VariantConfig
from ddpm.config.process import ProcessConfig
from ddpm.config.training import TrainingConfig
from ddpm.stages import fingerprint

# One value of every knob that decides nothing but speed, memory, logging and recovery.
INCIDENTAL = {
    "micro_batch_size": 4,
    "devices": 2,
    "checkpoint_every": 3,
    "rewind": 2,
    "log_every": 11,
    "sample_every": 9,
    "compile": True,
    "cuda_graphs": True,
    "prefetch": 2,
}


def mark_of(**options: object) -> str:
    config = VariantConfig(training=TrainingConfig(**options))
    return fingerprint.fingerprint(
        fingerprint.decisions(config, 0, {"training split": "0"}, "fp32", torch.device("cpu"))
    )


def test_a_knob_is_incidental_or_changes_the_fingerprint():
    left_out = {key for key in TrainingConfig.model_fields if key not in dict(decisive(TrainingConfig()))}
    assert left_out == {*INCIDENTAL, "ema_snapshots"}  # which decides something at another value
    for key, value in INCIDENTAL.items():
        assert mark_of(**{key: value}) == mark_of(), key
    others = {"steps": 3, "batch_size": 3, "learning_rate": 1.0, "warmup_steps": 3, "decay": "cosine", "grad_clip": 9.0}
    others |= {"ema_decay": 0.1, "horizontal_flip": True}
    for key, value in others.items():
        assert mark_of(**{key: value}) != mark_of(), key
    assert mark_of(precision="fp32") == mark_of(precision="auto"), "what it comes to on the device is what counts"


@pytest.mark.parametrize(
    "options",
    [{"log_every": 4, "rewind": 2, "checkpoint_every": 7, "prefetch": 2}, {"log_every": 100, "micro_batch_size": 3}],
)
def test_an_interrupted_training_continues_with_another_value_of_an_incidental_knob(
    killed: Path, uninterrupted: Path, options: dict[str, int]
):
    set_training(killed, **options)
    done = run_cli(killed, "train", "tiny")
    assert done.returncode == 0, done.stderr
    assert "continuing tiny from step" in done.stdout
    if "micro_batch_size" not in options:  # which changes the order in which gradients are added
        assert hashes(killed)["model.safetensors"] == hashes(uninterrupted)["model.safetensors"]
    with (killed / "models/tiny/loss.csv").open() as stream:
        steps = [int(row["step"]) for row in csv.DictReader(stream)]
    assert steps == sorted(set(steps))
    assert steps[-1] == LONG


def test_a_finished_training_is_not_repeated_for_an_incidental_knob(trained: Path):
    before = hashes(trained)["model.safetensors"]
    set_training(trained, rewind=3, log_every=5, micro_batch_size=2)
    done = run_cli(trained, "train", "tiny")
    assert "continuing tiny from step 40 of 40" in done.stdout
    assert hashes(trained)["model.safetensors"] == before


def test_a_comment_or_a_docstring_decides_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(closure, "PACKAGE", tmp_path)

    def digest(code: str) -> str:
        (tmp_path / "a.py").write_text(code)
        return closure.digest("a.py")

    plain = digest("def f(x):\n    return x + 1\n")
    assert digest('"""Text."""\n\ndef f(x):  # why\n    """More."""\n    return (x + 1)\n') == plain
    assert digest("def f(x):\n    return x + 2\n") != plain


def test_the_code_that_decides_is_what_dvc_watches():
    stages = yaml.safe_load((Path(__file__).parents[2] / "dvc.yaml").read_text())["stages"]
    # DVC sees the values that params.yaml writes, and the code of their sections for those that it does not.
    sections = {
        f"ddpm/config/{name}.py" for name in ("network", "condition", "codec", "process", "objective", "training")
    }
    watched = {f"ddpm/{file}" for file in fingerprint.decisive_code()} | sections | {"prepared"}
    assert set(stages["train"]["deps"]) == watched


def test_keys_that_came_later_decide_nothing_at_their_defaults():
    """The fingerprint of a training of before there were other processes has these keys of its process, and no more."""
    before = {"timesteps", "schedule", "betas", "prediction", "variance"}
    assert dict(decisive(ProcessConfig())).keys() == before
    assert "ema_snapshots" not in dict(decisive(TrainingConfig()))
    edm = dict(decisive(ProcessConfig(kind="edm", sigma_data=0.7)))
    assert edm.keys() - before == {"kind", "sigma_data"}
    assert dict(decisive(TrainingConfig(ema_snapshots=4)))["ema_snapshots"] == 4
