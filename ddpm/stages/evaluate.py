"""`ddpm evaluate V`: figures with their protocol, and pictures."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from numpy.typing import NDArray
from PIL import Image

from ddpm.config import Params, SamplingConfig
from ddpm.data.kinds import DataKind
from ddpm.data.store import PreparedData
from ddpm.device import pick_device
from ddpm.diffusion.plans import SamplingPlan, decisive_choices
from ddpm.errors import NotFiniteError, UserError
from ddpm.evaluation.curves import column, curves
from ddpm.evaluation.denoising import denoising
from ddpm.evaluation.extractor import load_coordinates, load_extractor
from ddpm.evaluation.images import ImageMeasure
from ddpm.evaluation.metrics import KID_SUBSET_SIZE, KID_SUBSETS
from ddpm.evaluation.pictures import captioned, origin, save_png
from ddpm.evaluation.protocol import EvaluationProtocol, mark_of
from ddpm.evaluation.requirements import NEIGHBOURHOOD, score_splits
from ddpm.evaluation.sharding import sharded_batches
from ddpm.evaluation.trained import gigaflops_per_image, likelihood_figures, likelihood_table, split_bounds
from ddpm.evaluation.values import ValueMeasure
from ddpm.files import atomic_directory, write_bytes, write_json
from ddpm.layout import EXTRACTOR, FEATURES, MODELS, PREPARED, REPORTS
from ddpm.model import Model, load
from ddpm.parallel import Ranks, check_devices, joined, launch, launched
from ddpm.stages.progress import bar, show, unit_of

# The first process may take long for the features of all real images, for which the others wait.
_PATIENCE = timedelta(days=1)


class Sampled(Protocol):
    """What is measured: a trained model or an exported one."""

    @property
    def kind(self) -> DataKind: ...

    def plan(self) -> SamplingPlan: ...


class ModelFacts(NamedTuple):
    """What of a model enters the protocol it is measured under."""

    sampling: SamplingConfig
    variance: str
    """Of its process, which the ancestral sampler has unless the plan says otherwise."""
    weights: str
    """Which of a training's weights it has."""


@dataclass(frozen=True)
class Measurement:
    """What a model scores, how that was measured, and what it looks like."""

    metrics: dict[str, float | int]
    protocol: EvaluationProtocol
    pictures: dict[str, Image.Image]
    """By file name, without captions."""


def evaluate_variant(params: Params, variant: str, *, root: Path = Path()) -> None:
    """Write `reports/V/`: metrics.json, protocol.json, pictures, and nll.csv with the terms of the likelihood's bound.

    With `evaluation.devices` it starts a process for each, unless it is one that torchrun has started.

    Raises:
        UserError: the model, the extractor or the prepared data is missing or damaged, the model cannot be sampled by
            the protocol's plan, or there are fewer devices.
    """
    devices = params.evaluation.devices
    if devices > 1 and not launched():
        check_devices(devices, "evaluation.devices")
        _opened(params, variant, torch.device("cpu"), root)  # what is wrong with it, one process says
        with contextlib.chdir(root):
            launch(devices, "evaluate", variant, params)
        return
    with joined(_PATIENCE) as ranks:
        _evaluate(params, variant, ranks, root)


def _opened(params: Params, variant: str, device: torch.device, root: Path) -> tuple[Model, PreparedData]:
    """The model with the plan it is measured under, and the data that it fits."""
    sampling, key = params.evaluation.sampling, "evaluation.sampling"
    if sampling is None:
        sampling, key = params.variant(variant).sampling, f"models.{variant}.sampling"
    model = load(root / MODELS / variant, device).sampled_by(sampling)
    data = PreparedData.open(root / PREPARED)
    check_fit(model, data, f"models/{variant}", key)
    return model, data


def _loss_curve(path: Path) -> str:
    """The text of a training's curve; empty where there is none.

    Raises:
        UserError: it is not one.
    """
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        column(text, "step", "loss")
    except ValueError as error:
        raise UserError(f"{path}: damaged: {error}") from None
    return text


def _evaluate(params: Params, variant: str, ranks: Ranks, root: Path) -> None:
    """`evaluate_variant`, in one of the processes that draw the samples; the first does all else."""
    options, device = params.evaluation, pick_device()
    model, data = _opened(params, variant, device, root)
    loss = _loss_curve(root / MODELS / variant / "loss.csv")
    drawn = sharded_batches(model, ranks, options.samples, seed=params.seed, batch_size=options.batch_size)
    if not ranks.first:
        for _ in drawn:
            raise AssertionError("the first process has all batches")
        return
    config = model.card.config
    measured = measure(
        drawn,
        params,
        ModelFacts(config.sampling, config.process.variance, model.card.training.weights),
        data=data,
        root=root,
        device=device,
        name=f"models/{variant}",
    )
    bounds = split_bounds(model, data, options, seed=params.seed, show=show)
    protocol = measured.protocol
    with show(2, "steps", f"cost and way to data of {variant}") as done:
        cost = gigaflops_per_image(model)
        done(1)
        shown = denoising(model, data, params.seed)
        done(1)
    metrics = {
        **measured.metrics,
        **_finite(likelihood_figures(bounds), f"models/{variant}"),
        "gflops_per_image": cost,
    }
    marks = {"protocol": protocol.id, "model": mark_of(model.card.training.fingerprint)}
    with atomic_directory(root / REPORTS / variant) as out:
        write_json(out / "metrics.json", {**marks, **metrics})
        write_json(out / "protocol.json", {"id": protocol.id, **protocol.as_dict()})
        table = likelihood_table(bounds)
        write_bytes(out / "nll.csv", table.encode())
        drawn_curves = curves(loss, table)
        facts = origin(
            model=variant,
            training=marks["model"],
            seed=params.seed,
            sampling=config.sampling.model_dump(),
            variance=config.process.variance,
            protocol=protocol.id,
        )
        for name, picture in {**measured.pictures, "denoising.png": shown.picture}.items():
            save_png(captioned(picture, f"protocol {protocol.id}"), out / name, facts)
        if drawn_curves:
            save_png(drawn_curves, out / "curves.png", facts)
        write_bytes(out / "denoising.gif", shown.film(facts))


def check_fit(samples: Sampled, data: PreparedData, name: str, plan: str) -> None:
    """Check that a model can be measured with the data, by its plan.

    Args:
        name: what messages call it.
        plan: what they call its plan.

    Raises:
        UserError: the model and the data are of two kinds or shapes, or the plan is not one of the model's.
    """
    if samples.kind.name != data.kind.name:
        raise UserError(f"{name} makes {samples.kind.name}, but the prepared data are {data.kind.name}")
    if samples.kind.shape != data.kind.shape:
        made, prepared = ("×".join(map(str, shape)) for shape in (samples.kind.shape, data.kind.shape))
        raise UserError(f"{name} makes {data.kind.name} of {made}, but the prepared data are of {prepared}")
    try:
        samples.plan()
    except ValueError as error:
        raise UserError(f"{name} cannot be sampled by {plan}: {error}") from None


def measure(
    drawn: Iterable[NDArray[Any]],
    params: Params,
    facts: ModelFacts,
    *,
    data: PreparedData,
    root: Path,
    device: torch.device,
    name: str,
) -> Measurement:
    """Compute the figures of a model that fits the data.

    Args:
        drawn: evaluation.samples data of the model's, in batches.
        facts: of the model.
        name: what messages call it.

    Raises:
        UserError: the extractor is missing or damaged.
        NotFiniteError: the model draws NaN or infinite values, or a figure is one.
    """
    figures, identity = _measure_of(params, data, root, device)
    options = params.evaluation
    with bar(options.samples, unit_of(data.kind), f"samples of {name}") as progress:
        try:
            for batch in drawn:
                figures.add(batch)
                progress.update(len(batch))
        except NotFiniteError as error:
            raise NotFiniteError(f"{name} cannot be measured: {error}") from None
    protocol = protocol_of(params, facts, data, identity)
    if protocol.splits < options.splits:
        print(
            f"{name}: the Inception Score has {protocol.splits} parts, not evaluation.splits = {options.splits}: "
            f"there are {len(data.split('validation'))} validation images and {options.samples} samples"
        )
    return Measurement(_finite(figures.figures(), name), protocol, figures.pictures())


def _finite(figures: dict[str, float], name: str) -> dict[str, float]:
    """The figures, if they are numbers.

    Raises:
        NotFiniteError: one is NaN or infinite.
    """
    for key, value in figures.items():
        if not math.isfinite(value):
            raise NotFiniteError(f"{name} cannot be measured: {key} is {value}")
    return figures


def _measure_of(
    params: Params, data: PreparedData, root: Path, device: torch.device
) -> tuple[ImageMeasure | ValueMeasure, dict[str, Any]]:
    """What measures this kind of data, and the identity of the features it does it in."""
    if data.kind.name == "images":
        extractor = load_extractor(root / EXTRACTOR, weights=params.extractor.weights, device=device)
        return ImageMeasure(params, data, extractor, root / FEATURES, show), extractor.identity
    identity = load_coordinates(root / EXTRACTOR)
    return ValueMeasure(params, data, identity["bandwidth"], show), identity


def protocol_of(
    params: Params, facts: ModelFacts, data: PreparedData, extractor: Mapping[str, Any]
) -> EvaluationProtocol:
    """How such a model is measured; `extractor` is the identity of what it is measured by."""
    options = params.evaluation
    train, validation = data.split("train"), data.split("validation")
    reference = data.reference(options.reference)
    return EvaluationProtocol(
        extractor=extractor["kind"],
        extractor_sha256=extractor["sha256"],
        train_sha256=train.sha256,
        validation_sha256=validation.sha256,
        reference="all" if len(reference) > 1 else "train",
        reference_count=sum(len(data.split(name)) for name in reference),
        samples=options.samples,
        **decisive_choices(facts.sampling.model_dump(), variance=facts.variance),
        weights=facts.weights,
        splits=score_splits(options, len(validation)) if data.kind.name == "images" else options.splits,
        kid_subsets=KID_SUBSETS,
        kid_subset_size=KID_SUBSET_SIZE,
        neighbourhood=NEIGHBOURHOOD,
        nll_samples=options.nll_samples,
        # No likelihood is bounded of points and sequences.
        nll_timesteps=options.nll_timesteps if data.kind.name == "images" and options.nll_samples else None,
        resamples=options.resamples,
        seed=params.seed,
    )
