"""Training with labels: which of them are dropped follows from the seed and the step alone."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from loops import train_with
from torch import Tensor

from ddpm.conditioning.columns import LabelColumn
from ddpm.conditioning.network import ConditionalNetwork
from ddpm.config.params import load_params
from ddpm.data.loader import InMemoryImages, batch_indices
from ddpm.diffusion.process import GaussianProcess
from ddpm.diffusion.schedules import Schedule
from ddpm.errors import Interrupted
from ddpm.nets import build
from ddpm.stages.train import train_variant
from ddpm.training.checkpoint import Checkpoints
from ddpm.training.tasks import Denoise

OPTIONS = {"kind": "unet", "width": 8, "multipliers": (1, 2), "blocks": 1, "attention_resolutions": (4,), "groups": 4}
GENERATOR = np.random.default_rng(0)
IMAGES = InMemoryImages(GENERATOR.integers(0, 256, (20, 8, 8, 1), dtype=np.uint8))
LABELS = GENERATOR.integers(0, 3, 20)
NULL, SIZE, STEPS = 3, 10, 12


class Recording(ConditionalNetwork):
    """It keeps the labels that it gets."""

    def __init__(self, dropout: float) -> None:
        torch.manual_seed(0)
        network = build({**OPTIONS, "dropout": dropout}, image_size=8, channels=1)
        super().__init__(network, [LabelColumn(("a", "b", "c"), droppable=True)])
        self.told: list[Tensor] = []

    def forward(self, x, t, given=None):
        self.told.append(given["label"].clone())
        return super().forward(x, t, given)


def run(drop: float = 0.5, dropout: float = 0.0, **options) -> tuple[Recording, list]:
    """A training of 12 steps of 10 images: the network, and its curve."""
    network, process = Recording(dropout), GaussianProcess(Schedule.named("linear", 50))
    task = Denoise(process, columns=network.columns, drop={"label": drop} if drop else {})
    defaults = {"seed": 1, "steps": STEPS, "batch_size": SIZE, "warmup_steps": 0, "log_every": 1}
    curve = train_with(network, process, IMAGES, task=task, columns={"label": LABELS}, **{**defaults, **options})
    return network, curve


def labels_of_the_batches() -> Tensor:
    """[steps, batch size], before any is dropped."""
    return torch.from_numpy(np.stack([LABELS[batch_indices(20, SIZE, step, 1)] for step in range(STEPS)]))


def test_each_image_comes_with_its_own_label_or_with_the_null_class():
    told, labels = torch.stack(run()[0].told), labels_of_the_batches()
    dropped = told == NULL
    assert torch.equal(told[~dropped], labels[~dropped])
    # 120 draws at 1/2, within 5 standard deviations.
    assert 0.27 < dropped.double().mean() < 0.73
    assert not torch.equal(dropped[0], dropped[1]), "each step draws anew"
    assert torch.equal(torch.stack(run(drop=0.0)[0].told), labels)


def test_dropping_leaves_the_other_random_numbers_of_a_training_as_they_are():
    """Batches, timesteps and noise: a network that does not look at its label has the same losses."""

    def deaf(drop: float) -> list:
        network, process = Recording(0.0), GaussianProcess(Schedule.named("linear", 50))
        torch.nn.init.zeros_(network.conditioner.embedding.weight)
        network.conditioner.requires_grad_(False)
        task = Denoise(process, columns=network.columns, drop={"label": drop} if drop else {})
        options = {"seed": 1, "steps": 4, "batch_size": SIZE, "warmup_steps": 0, "log_every": 1}
        return train_with(network, process, IMAGES, task=task, columns={"label": LABELS}, **options)

    assert deaf(0.9) == deaf(0.0)


@pytest.mark.parametrize("at_once", [1, 4])
def test_a_batch_in_parts_has_the_same_labels_dropped(at_once: int):
    """The losses differ by float32's rounding in the first step, later by what Adam makes of that."""
    whole, curve = run()
    parts, curve_of_parts = run(micro_batch_size=at_once)
    assert torch.equal(torch.cat(parts.told), torch.cat(whole.told))
    assert curve_of_parts[0].loss == pytest.approx(curve[0].loss, rel=1e-5)
    losses = [[point.loss for point in each] for each in (curve_of_parts, curve)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)


@pytest.mark.parametrize("stop_after", [1, 5, 11])
def test_an_interrupted_training_ends_in_the_same_bits(tmp_path: Path, stop_after: int):
    whole, curve = run(dropout=0.2)
    checkpoints, steps = Checkpoints(tmp_path), iter(range(1, STEPS + 1))
    with pytest.raises(Interrupted):
        run(dropout=0.2, checkpoints=checkpoints, should_stop=lambda: next(steps) == stop_after)
    resumed, curve_of_resumed = run(dropout=0.2, checkpoints=checkpoints)
    assert len(resumed.told) == STEPS - stop_after
    assert torch.equal(torch.cat(resumed.told), torch.cat(whole.told[stop_after:]))
    assert curve_of_resumed == curve
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_several_processes_drop_the_labels_that_one_does(project: Path):
    """Half of the labels are dropped, so that another choice would show in the second digit of the losses."""
    params = yaml.safe_load((project / "params.yaml").read_text())
    tiny = params["models"]["tiny"]
    tiny["network"]["dropout"] = 0.0
    tiny["condition"] = {"label": {"drop": 0.5}}
    tiny["training"] |= {"batch_size": 9, "steps": 20}
    (project / "params.yaml").write_text(yaml.safe_dump(params))

    def curve() -> list[float]:
        with (project / "models/tiny/loss.csv").open() as stream:
            return [float(row[key]) for row in csv.DictReader(stream) for key in ("loss", "grad_norm")]

    train_variant(load_params(), "tiny")
    alone = curve()
    for path in (project / ".ddpm").rglob("step-*/state.json"):
        path.unlink()
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "ddpm", "train", "tiny"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert curve() == pytest.approx(alone, rel=1e-5)
    assert curve() != alone, "two have done it"
