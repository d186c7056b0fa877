"""Averages whose length is chosen after the training, and `ddpm tune-ema`."""

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from loops import train_with
from safetensors.torch import load_file
from tiny import UNET
from torch import nn
from untrained import untrained

import ddpm
from ddpm import cli
from ddpm.data.loader import InMemoryImages
from ddpm.diffusion.process import GaussianProcess
from ddpm.diffusion.schedules import Schedule
from ddpm.errors import Interrupted
from ddpm.model.card import DataFacts
from ddpm.nets import build
from ddpm.training.checkpoint import Checkpoints
from ddpm.training.power_ema import (
    LENGTHS,
    SNAPSHOTS,
    PowerAverages,
    Profile,
    combination,
    exponent,
    overlap,
    reconstructed,
    snapshot_steps,
    write_snapshot,
)


def test_the_exponents_are_the_papers():
    """Karras et al. 2024, §3.1: σ_rel 0.05 and 0.10 are γ = 16.97 and 6.94."""
    assert [round(exponent(length), 2) for length in LENGTHS] == [16.97, 6.94]
    for length in (0.01, 0.15, 0.28):
        gamma = exponent(length)
        assert ((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) ** 0.5 == pytest.approx(length)
    for length in (0.0, -0.1, 0.3):
        with pytest.raises(ValueError, match=r"a length must be in \(0, 0.28\]"):
            exponent(length)


def test_the_overlap_of_profiles_is_their_integral():
    one, other = Profile(800, 0.05), Profile(1000, 0.2)
    tau = (np.arange(1_000_000) + 0.5) / 1000
    densities = [
        np.where(tau < each.step, (gamma + 1) * (tau / each.step) ** gamma / each.step, 0.0)
        for each in (one, other)
        for gamma in [exponent(each.length)]
    ]
    assert overlap(one, other) == pytest.approx((densities[0] * densities[1]).sum() / 1000, rel=1e-4)
    assert overlap(one, other) == overlap(other, one)


def wandering(steps, count, directory):
    """A network whose weights wander, and snapshots of its averages; returns the weights of every step."""
    network = nn.Linear(3, 2)
    generator, averages, path = torch.Generator().manual_seed(0), PowerAverages(network), []
    with torch.no_grad():
        for step in range(steps):
            for parameter in network.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
            averages.update(step)
            path.append(network.weight.clone())
            if step + 1 in snapshot_steps(steps, count):
                write_snapshot(directory / SNAPSHOTS, step + 1, averages.tensors())
    return torch.stack(path).double(), averages


def exact(path, length):
    """The average of all weights by the update rule."""
    gamma, average = exponent(length), path[0]
    for step, weights in enumerate(path[1:], start=1):
        average = average + (1 - (1 - 1 / (step + 1)) ** (gamma + 1)) * (weights - average)
    return average


def test_an_average_of_any_length_is_had_after_the_training(tmp_path):
    path, averages = wandering(800, 16, tmp_path)
    spread = float((path[-1] - path.mean(0)).norm())
    for length in (0.03, 0.05, 0.08, 0.1, 0.15, 0.2):
        found = reconstructed(tmp_path, length)
        assert found["weight"].dtype == torch.float32
        assert float((found["weight"] - exact(path, length)).norm()) < 0.06 * spread, length
    # The lengths that were kept are there as they are.
    torch.testing.assert_close(
        reconstructed(tmp_path, 0.05)["bias"], averages.tensors()["0.05.bias"], rtol=0, atol=1e-5
    )
    assert sorted(reconstructed(tmp_path, 0.1)) == ["bias", "weight"]


def test_more_snapshots_come_nearer():
    def distance(count):
        kept = [Profile(step, each) for step in sorted(snapshot_steps(1000, count)) for each in LENGTHS]
        weights, wanted = combination(kept, Profile(1000, 0.02)), Profile(1000, 0.02)
        among = np.array([[overlap(one, other) for other in kept] for one in kept])
        cross = np.array([overlap(each, wanted) for each in kept])
        return weights @ among @ weights - 2 * weights @ cross + overlap(wanted, wanted)

    assert distance(64) < 0.5 * distance(16) < 0.5 * distance(4)


def test_the_snapshots_are_even_and_end_with_the_training():
    assert snapshot_steps(100, 4) == {25, 50, 75, 100}
    assert snapshot_steps(10, 3) == {3, 7, 10}
    assert snapshot_steps(100, 0) == set()
    assert snapshot_steps(2, 5) == {1, 2}


def test_tune_ema_chooses_a_length_of_a_trained_model(project: Path, capsys):
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["models"]["tiny"]["training"]["ema_snapshots"] = 4
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    assert cli.main(["train", "tiny"]) == 0
    kept = sorted(path.name for path in (project / "models/tiny" / SNAPSHOTS).iterdir())
    assert kept == [f"step-{step:09d}.safetensors" for step in (10, 20, 30, 40)]
    last = load_file(project / "models/tiny" / SNAPSHOTS / kept[-1])
    found = reconstructed(project / "models/tiny", 0.1)
    torch.testing.assert_close(found["out_conv.weight"], last["0.1.out_conv.weight"], rtol=0, atol=1e-5)

    capsys.readouterr()
    assert cli.main(["tune-ema", "tiny", "--lengths", "0.05,0.2", "--samples", "32", "--out", "best"]) == 0
    told = capsys.readouterr().out
    assert "tiny: FID by length of the average, with seed 4: 0.05: " in told
    assert "of 32 other samples, of seed 5:" in told
    model = ddpm.load(project / "best")
    length = model.card.training.ema_length
    assert length in (0.05, 0.2)
    expected = reconstructed(project / "models/tiny", length)["out_conv.weight"]
    torch.testing.assert_close(model.network.get_parameter("out_conv.weight").data, expected)
    assert model.fingerprint != ddpm.load(project / "models/tiny").fingerprint


def test_a_killed_training_keeps_the_same_snapshots(tmp_path):
    images = InMemoryImages(np.random.default_rng(0).integers(0, 256, (32, 8, 8, 1), np.uint8))

    def run(directory, stop_at=None):
        torch.manual_seed(0)
        network, done, kept = build({**UNET}, image_size=8, channels=1, dims=2), [], {}
        options = {
            "steps": 12, "batch_size": 4, "checkpoint_every": 4, "log_every": 4, "ema_snapshots": 3,
            "checkpoints": Checkpoints(directory), "on_step": done.append,
            "on_snapshot": lambda step, averages: kept.update({step: {k: v.clone() for k, v in averages.items()}}),
            "should_stop": lambda: len(done) == stop_at,
        }  # fmt: skip
        with pytest.raises(Interrupted) if stop_at else contextlib.nullcontext():
            train_with(network, GaussianProcess(Schedule.named("linear", 20)), images, **options)
        return kept

    whole, first = run(tmp_path / "whole"), run(tmp_path / "parts", stop_at=5)
    assert (list(whole), list(first)) == ([4, 8, 12], [4])
    rest = run(tmp_path / "parts")
    assert list(rest) == [8, 12]
    for step in rest:
        for name, tensor in whole[step].items():
            assert torch.equal(rest[step][name], tensor), name


def test_a_model_without_snapshots_and_lengths_that_are_none(project: Path, capsys):
    untrained("tiny", project / "models", DataFacts(name="digits", shape=(8, 8, 1), classes=None))
    assert cli.main(["tune-ema", "tiny", "--lengths", "0.4"]) == 2
    assert "--lengths: a length must be in (0, 0.28]" in capsys.readouterr().err
    assert cli.main(["tune-ema", "tiny"]) == 2
    assert "models/tiny has no snapshots of averages: set training.ema_snapshots" in capsys.readouterr().err
