"""A training that is watched, and one that is only told of."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tiny import run_cli

from ddpm.config.params import load_params
from ddpm.data.store import PreparedData
from ddpm.model.network import build_network
from ddpm.stages import dry_run as dry_run_module
from ddpm.stages.dry_run import dry_run
from ddpm.stages.live_metrics import Watch
from ddpm.stages.train import train_variant
from ddpm.training.ema import EMA
from ddpm.training.memory import OutOfMemoryError


def files(directory: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in directory.rglob("*")}


def set_training(project: Path, **options) -> None:
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["models"]["tiny"]["training"] |= options
    (project / "params.yaml").write_text(yaml.safe_dump(params))


def watched(project: Path) -> tuple[Watch, torch.nn.Module]:
    config, data = load_params().variant("tiny"), PreparedData.open(project / "prepared")
    torch.manual_seed(0)
    return Watch(config, data.codec, torch.device("cpu"), seed=0), build_network(config, data.codec)


def test_a_dry_run_writes_nothing_and_counts_the_parameters(project):
    before = files(project)
    told = dry_run(load_params(), "tiny")
    assert files(project) == before
    _, network = watched(project)
    count = int(re.search(r"parameters\s+([\d,]+)", told[1])[1].replace(",", ""))
    assert count == sum(parameter.numel() for parameter in network.parameters())
    # 64 images in 5 steps, and 4 images of each split at 50 timesteps.
    assert "5 steps, and 400 for the likelihood: 720 evaluations of the network, about" in told[-1]
    for line, unit in zip(
        told[2:], ["GFLOP for one", "MiB for weights", "images/s", "40 steps", "64 images in"], strict=True
    ):
        assert unit in line


def test_a_dry_run_says_how_many_fit_the_memory_there_is(project, monkeypatch):
    monkeypatch.setattr("ddpm.training.cost._available", lambda: 3 * 2**19)
    [line] = [line for line in dry_run(load_params(), "tiny") if "memory" in line]
    found = re.search(r"does not fit \(2 MiB are free\): set models.tiny.training.micro_batch_size to (\d)", line)
    assert int(found[1]) in (1, 2, 4)


def test_a_dry_run_goes_on_with_fewer_where_the_memory_runs_out(project, monkeypatch):
    """A stand-in for a device without room."""
    real, tried = dry_run_module.train_configured, []

    def short_of_memory(*args, micro_batch_size, **options):
        tried.append(micro_batch_size)
        if micro_batch_size > limit:
            raise OutOfMemoryError(micro_batch_size)
        return real(*args, micro_batch_size=micro_batch_size, **options)

    monkeypatch.setattr(dry_run_module, "train_configured", short_of_memory)
    limit = 3
    assert any("micro_batch_size to 2, about" in line for line in dry_run(load_params(), "tiny"))
    assert tried == [8, 4, 2]
    limit = 0
    [line] = [line for line in dry_run(load_params(), "tiny") if "memory  " in line]
    assert re.search(r"out of memory with a single one of the images at once, .* MiB are free: make models.tiny", line)
    assert line.endswith("or set its `checkpointing: true`")


def test_a_dry_run_of_what_cannot_be_built_is_an_error_as_ever(project):
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["models"]["tiny"]["network"]["groups"] = 3
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    done = run_cli(project, "train", "tiny", "--dry-run")
    assert done.returncode == 2
    assert "groups is 3" in done.stderr


def test_the_figures_are_the_means_of_the_quarters(project):
    watch, network = watched(project)
    watch.losses(torch.tensor([0, 12, 13, 49]), torch.tensor([1.0, 3.0, 5.0, 7.0]))
    watch.losses(torch.tensor([0]), torch.tensor([2.0]))
    figures = watch.figures()
    quarters = {f"loss_t_quarter_{q}": mean for q, mean in ((1, 2.0), (2, 5.0), (4, 7.0))}
    assert {key: value for key, value in figures.items() if "quarter" in key} == quarters
    assert figures["images_per_second"] > 0
    assert not any("quarter" in key for key in watch.figures()), "each point begins anew"
    ema = EMA(network, 0.5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2)
    watch.average(ema)
    assert watch.figures()["ema_distance"] == pytest.approx(0.5)


def test_samples_are_the_averages_and_leave_the_network_as_it_was(project):
    watch, network = watched(project)
    ema = EMA(network, 0.5)
    network.train()
    first = watch.samples(network, ema)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    own = [parameter.detach().clone() for parameter in network.parameters()]
    assert np.array_equal(watch.samples(network, ema), first), "the same noise, the same averages"
    assert all(map(torch.equal, network.parameters(), own))
    assert network.training


def test_watching_changes_no_weight_and_shows_the_samples(project, monkeypatch):
    shown = []

    class Sent:
        def __enter__(self):
            return lambda step, metrics, picture=None: shown.append((step, dict(metrics), picture))

        def __exit__(self, *_):
            pass

    train_variant(load_params(), "tiny")
    plain = (project / "models/tiny/model.safetensors").read_bytes()
    shutil.rmtree(project / ".ddpm")  # else it would have nothing left to do: neither key is of the weights
    set_training(project, sample_every=20, prefetch=2)
    monkeypatch.setattr("ddpm.tracking.live_curve", Sent)
    train_variant(load_params(), "tiny")
    assert (project / "models/tiny/model.safetensors").read_bytes() == plain
    assert [step for step, _, picture in shown if picture is not None] == [20, 40]
    assert all("ema_distance" in metrics for _, metrics, picture in shown if picture is None)
