"""The cells of a study: arrays that are expensive to compute, kept under a hash of all that decides them."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm.closure import closure, digest
from ddpm.conditioning.columns import Given
from ddpm.config.sampling import SamplingConfig
from ddpm.diffusion.likelihood import likelihood_bound
from ddpm.diffusion.plans import SamplingPlan
from ddpm.diffusion.process import GaussianProcess
from ddpm.diffusion.schedules import spaced_timesteps
from ddpm.drawer import Drawer
from ddpm.files import atomic_file, sha256_of
from ddpm.model import Model, load

# What decides samples and bounds beside the weights and the plan: all that these can reach, but for these.
_DECISIVE = ("diffusion/likelihood.py", "drawer/cascade.py", "model/__init__.py")
_NO_PART = ("config/", "errors.py", "files.py", "layout.py")

BATCH = 250  # images; does not change the samples


@dataclass(frozen=True)
class TrainedModel:
    """A model with the SHA-256 of its weights, and of those of its guide if another model guides it."""

    model: Model
    sha256: str
    guide_sha256: str | None = None

    @classmethod
    def read(cls, directory: Path, device: torch.device, sampling: SamplingConfig, guide: Path | None = None) -> Self:
        """The model of a directory with another plan as its own, guided by the model of another directory."""
        named = None if guide is None else str(guide.absolute())
        model = load(directory, device).sampled_by(sampling.model_copy(update={"guide": named}))
        weights = [None if each is None else sha256_of(each / "model.safetensors") for each in (directory, guide)]
        return cls(model, str(weights[0]), weights[1])


class Cells:
    """A directory of arrays; a study that was killed finds there what it had."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        files = {file for entry in _DECISIVE for file in closure(entry, without=_NO_PART)}
        self._code = {file: digest(file) for file in sorted(files)}

    def samples(self, trained: TrainedModel, count: int, seed: int, plan: Mapping[str, Any]) -> NDArray[np.uint8]:
        """`count` images [count, H, W, C] of a seed, by a plan (overrides of the model's own); a cell a batch."""
        rows = trained.model.plan(**plan)
        facts = {"seed": seed, **_facts(rows)}
        return np.concatenate(
            [
                self._of_model(
                    trained,
                    {"images": [batch.start, batch.stop], **facts},
                    functools.partial(_sampled, trained.model, rows, seed, batch),
                )
                for batch in _batches(count)
            ]
        )

    def drawn(self, drawer: Drawer, count: int, seed: int, plan: Mapping[str, Any], **asked: Any) -> NDArray[np.uint8]:
        """`count` images [count, H, W, C] of a seed, by a plan (overrides of the model's own); a cell a batch.

        Args:
            drawer: a trained model or a cascade, with its fingerprint.
            asked: of its columns, as `Drawer.sample` takes it.
        """
        rows, cells = drawer.plan(**plan), []
        guide = {} if drawer.guide_mark is None else {"guide": drawer.guide_mark}
        choice = {} if drawer.candidates == 1 else {"candidates": drawer.candidates}
        model = {"model": drawer.fingerprint, "other_plans": drawer.other_plans, **guide, **choice}
        facts = {"seed": seed, **model, **_facts(rows)}
        whole = drawer.given(count, seed=seed, **asked)
        for batch in _batches(count):
            given: Given = {name: values[batch.start : batch.stop] for name, values in whole.items()}
            hashes = {name: hashlib.sha256(values.tobytes()).hexdigest() for name, values in sorted(given.items())}
            draw = functools.partial(drawer.draw, len(batch), rows, seed=seed, first=batch.start, given=given)
            cells.append(self._cached({"images": [batch.start, batch.stop], "given": hashes, **facts}, draw))
        return np.concatenate(cells)

    def bounds(
        self, trained: TrainedModel, parts: Sequence[NDArray[np.uint8]], *, variance: str, steps: int
    ) -> NDArray[np.float64]:
        """The bound on −log₂ p of each part of some images, in bits per dimension, [len(parts)]; a cell a part.

        Args:
            parts: images [n, H, W, C] each.
            variance: of the reverse steps; a fixed one is no matter of training.
            steps: of the process, respaced; T leaves it whole.
        """
        facts = {"variance": variance, "steps": steps}
        bounds = [
            self._of_model(
                trained,
                {"seed": seed, "part": hashlib.sha256(part.tobytes()).hexdigest(), **facts},
                functools.partial(_bound, trained.model, part, variance, steps, seed),
            )
            for seed, part in enumerate(parts)
        ]
        return np.array(bounds)

    def _of_model(
        self, trained: TrainedModel, decisive: dict[str, Any], compute: Callable[[], NDArray[Any]]
    ) -> NDArray[Any]:
        process = trained.model.card.config.process.model_dump(mode="json")
        weights = {"weights": trained.sha256, "guide": trained.guide_sha256}
        return self._cached({**decisive, **weights, "process": process}, compute)

    def _cached(self, decisive: dict[str, Any], compute: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        text = json.dumps({**decisive, "code": self._code})
        path = self._directory / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.npy"
        if not path.is_file():
            array = compute()
            with atomic_file(path) as temporary:
                np.save(temporary, array)
        return np.load(path)


def _batches(count: int) -> list[range]:
    return [range(first, min(first + BATCH, count)) for first in range(0, count, BATCH)]


def _facts(plan: SamplingPlan) -> dict[str, Any]:
    """What a plan does, as JSON."""
    known = {} if plan.known is None else {"known": plan.known.tolist()}
    return {
        **known,
        "timesteps": plan.timesteps.tolist(),
        # To seven digits, float32's: the posterior is reached by two formulas, ancestral and DDIM's with η = 1.
        "table": [f"{value + 0.0:.6e}" for value in plan.table.ravel()],
    }


def _sampled(model: Model, plan: SamplingPlan, seed: int, images: range) -> NDArray[np.uint8]:
    return model.draw(len(images), plan, seed=seed, first=images.start)


def _bound(model: Model, images: NDArray[np.uint8], variance: str, steps: int, seed: int) -> NDArray[np.float64]:
    # Both ends are kept, as improved DDPM keeps them: the decoder's term is that of t = 0.
    visited = model.schedule.respaced(spaced_timesteps(len(model.schedule), steps, "linspace"))
    prediction = model.card.config.process.prediction
    process = GaussianProcess(visited, prediction=prediction, variance=variance, device=model.device)
    original = torch.from_numpy(visited.timesteps).to(model.device)
    x0 = model.codec.encode(torch.from_numpy(images).to(model.device))
    bound = likelihood_bound(lambda x, t: model.network(x, original[t]), process, [x0], seed=seed)
    return np.array(bound.bits_per_dim)
