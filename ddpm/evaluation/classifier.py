"""How well a classifier tells the classes of noisy data apart, which decides where it can guide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ddpm.data.store import PreparedData
from ddpm.diffusion.noise import ImageNoise
from ddpm.errors import UserError
from ddpm.evaluation.plots import Chart, charts
from ddpm.evaluation.tables import csv_table
from ddpm.model import Model
from ddpm.model.network import codec_of

LEVELS = 10


class Level(NamedTuple):
    """What a classifier does at one level of noise."""

    t: int
    """0..T−1."""
    noise: float
    """√(1−ᾱ_t), in 0..1."""
    accuracy: float
    """Share of the data whose class has the largest logit."""
    cross_entropy: float
    """Mean −log p(y | x_t), in nats."""


def levels_of(timesteps: int) -> list[int]:
    """The timesteps at which a classifier is measured: `LEVELS` from the first to the last, or all if they are fewer.

    Args:
        timesteps: T of its process.
    """
    return np.unique(np.linspace(0, timesteps - 1, LEVELS).round().astype(np.int64)).tolist()


def accuracy_evaluations(data: PreparedData, timesteps: int) -> int:
    """How often `accuracy_by_noise` evaluates the network for a datum.

    Args:
        timesteps: T of its process.
    """
    return len(levels_of(timesteps)) * len(data.split("validation"))


@torch.no_grad()
def accuracy_by_noise(
    model: Model,
    data: PreparedData,
    *,
    seed: int,
    batch_size: int,
    on_data: Callable[[int], object] = lambda done: None,
) -> list[Level]:
    """At the timesteps of `levels_of`, of the whole validation split. A datum has the same noise at every level.

    Args:
        on_data: called with the number of data done since the last call.

    Raises:
        UserError: the data have no labels, or other classes or another shape than the classifier's.
    """
    split, facts, process = data.split("validation"), model.card.data, model.process()
    if not model.card.config.classifies:
        raise UserError(f"models/{model.card.variant} is no classifier; run `ddpm train {model.card.variant}`")
    codec = codec_of(model.card.config, data.codec, f"models/{model.card.variant}")
    if split.labels is None or facts.classes != data.manifest.classes or facts.shape != codec.shape:
        raise UserError(f"models/{model.card.variant} is a classifier of other data than the prepared ones")
    steps = levels_of(process.timesteps)
    right, surprise = np.zeros(len(steps)), np.zeros(len(steps))
    for first in range(0, len(split), batch_size):
        rows = np.arange(first, min(first + batch_size, len(split)))
        x0 = codec.encode(torch.from_numpy(split.rows(rows)).to(model.device))
        label = torch.from_numpy(split.labels[rows]).to(model.device)
        noise = ImageNoise(seed, len(rows), model.codec.network_shape, first=first)
        drawn = torch.from_numpy(noise.draw()).to(model.device)
        for number, step in enumerate(steps):
            t = torch.full((len(rows),), step, dtype=torch.int64, device=model.device)
            logits = model.network(*process.told(process.q_sample(x0, t, drawn), t)).float()
            right[number] += (logits.argmax(1) == label).sum().item()
            surprise[number] += F.cross_entropy(logits, label, reduction="sum").item()
            on_data(len(rows))
    levels = process.noise[steps].tolist()
    return [
        Level(t, level, hits / len(split), nats / len(split))
        for t, level, hits, nats in zip(steps, levels, right.tolist(), surprise.tolist(), strict=True)
    ]


def table(levels: Sequence[Level]) -> str:
    """As CSV, a row a level."""
    return csv_table(Level._fields, levels)


def picture(levels: Sequence[Level]) -> Image.Image:
    """Accuracy and cross-entropy over t."""
    shown = {
        "accuracy": [(float(level.t), level.accuracy) for level in levels],
        "cross-entropy": [(float(level.t), level.cross_entropy) for level in levels],
    }
    return charts(
        [Chart(f"{name} of the noisy validation data", "t", name, {"classifier": line}) for name, line in shown.items()]
    )
