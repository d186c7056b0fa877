"""`ddpm evaluate V`: figures with their protocol, and pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from PIL import Image

from ddpm.config import Params, SamplingConfig
from ddpm.data.kinds import DataKind
from ddpm.data.store import PreparedData
from ddpm.device import pick_device
from ddpm.errors import UserError
from ddpm.evaluation.denoising import denoising
from ddpm.evaluation.images import ImageMeasure
from ddpm.evaluation.pictures import save_png
from ddpm.evaluation.protocol import EvaluationProtocol
from ddpm.evaluation.values import ValueMeasure
from ddpm.files import atomic_directory, write_json
from ddpm.layout import EXTRACTOR, MODELS, PREPARED, REPORTS
from ddpm.model import load
from ddpm.stages.progress import bar


class Samples(Protocol):
    """What is measured: a trained model, or an exported one."""

    @property
    def kind(self) -> DataKind: ...

    def batches(self, count: int, *, seed: int, batch_size: int, **overrides: Any) -> Iterator[NDArray[Any]]: ...


@dataclass(frozen=True)
class Measurement:
    """What a model scores, how that was measured, and what it looks like."""

    metrics: dict[str, float | int]
    protocol: EvaluationProtocol
    pictures: dict[str, Image.Image]
    """By file name."""


def evaluate_variant(params: Params, variant: str, *, root: Path = Path()) -> None:
    """Write `reports/V/`: metrics.json, protocol.json, samples.png and denoising.png.

    Raises:
        UserError: the model, the extractor or the prepared data is missing or damaged.
    """
    device = pick_device()
    model = load(root / MODELS / variant, device).sampled_by(params.variant(variant).sampling)
    data = PreparedData.open(root / PREPARED)
    config = model.card.config
    measured = measure(
        model,
        params,
        sampling=config.sampling,
        variance=config.process.variance,
        weights=model.card.training.weights,
        data=data,
        root=root,
        device=device,
        name=f"models/{variant}",
    )
    with atomic_directory(root / REPORTS / variant) as out:
        write_json(out / "metrics.json", {"protocol": measured.protocol.id, **measured.metrics})
        write_json(out / "protocol.json", {"id": measured.protocol.id, **measured.protocol.as_dict()})
        for name, picture in {**measured.pictures, "denoising.png": denoising(model, data, params.seed)}.items():
            save_png(picture, out / name)


def measure(
    samples: Samples,
    params: Params,
    *,
    sampling: SamplingConfig,
    variance: str,
    weights: str,
    data: PreparedData,
    root: Path,
    device: torch.device,
    name: str,
) -> Measurement:
    """Draw from a model and compute its figures.

    Args:
        sampling: the plan to draw by.
        variance: of the model's process, which the ancestral sampler has unless the plan says otherwise.
        weights: which of a training's weights the model has.
        name: what messages call it.

    Raises:
        UserError: the model and the data are of two kinds, or the extractor is missing or damaged.
    """
    if samples.kind.name != data.kind.name:
        raise UserError(f"{name} makes {samples.kind.name}, but the prepared data are {data.kind.name}")
    figures = (
        ImageMeasure(params, data, root / EXTRACTOR, device)
        if data.kind.name == "images"
        else ValueMeasure(params, data, root / EXTRACTOR)
    )
    protocol = _protocol(params, sampling, variance, weights, data, figures.identity)
    options = params.evaluation
    with bar(options.samples, "img", f"samples of {name}") as progress:
        drawn = samples.batches(
            options.samples, seed=params.seed, batch_size=options.batch_size, **sampling.model_dump()
        )
        for batch in drawn:
            figures.add(batch)
            progress.update(len(batch))
    return Measurement(figures.figures(), protocol, figures.pictures())


def _protocol(
    params: Params,
    sampling: SamplingConfig,
    variance: str,
    weights: str,
    data: PreparedData,
    extractor: dict[str, Any],
) -> EvaluationProtocol:
    reference = data.split("train")
    return EvaluationProtocol(
        extractor=extractor["kind"],
        extractor_sha256=extractor["sha256"],
        reference="train",
        reference_sha256=reference.sha256,
        reference_count=len(reference),
        samples=params.evaluation.samples,
        sampler=sampling.sampler,
        steps=sampling.steps,
        variance=sampling.variance or variance,
        eta=sampling.eta,
        spacing=sampling.spacing,
        clip=sampling.clip,
        dynamic_threshold=sampling.dynamic_threshold,
        weights=weights,
        splits=params.evaluation.splits,
        seed=params.seed,
    )
