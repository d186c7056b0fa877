"""Measuring the samples of a model, trained or exported: its figures, their protocol, and pictures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ddpm.codecs.scale import Codec
from ddpm.conditioning.columns import Column, Given, LabelColumn, PromptColumn, needed
from ddpm.conditioning.hints import DerivedHint, GivenColumn
from ddpm.config.base import validate
from ddpm.config.evaluation import EvaluationConfig
from ddpm.config.params import Params
from ddpm.config.sampling import SamplingConfig
from ddpm.data.store import Manifest, PreparedData
from ddpm.diffusion.plans import SamplingPlan, decisive_choices
from ddpm.drawer import Drawer
from ddpm.errors import NotFiniteError, UserError
from ddpm.evaluation.agreement import Agreement, hint_columns
from ddpm.evaluation.alignment import CANDIDATES, judge_mark, judge_of
from ddpm.evaluation.extractor import load_coordinates, load_extractor
from ddpm.evaluation.image_metrics import ImageMeasure
from ddpm.evaluation.image_to_image import Enlargement, filling, fills_in, like_validation, low_column
from ddpm.evaluation.metrics import KID_SUBSET_SIZE, KID_SUBSETS
from ddpm.evaluation.progress import Show, unseen
from ddpm.evaluation.requirements import NEIGHBOURHOOD, score_splits
from ddpm.evaluation.retrieval import Captioned, evenly
from ddpm.evaluation.value_metrics import ValueMeasure
from ddpm.figures.protocol import EvaluationProtocol
from ddpm.layout import EXTRACTOR, FEATURES


class Sampled(Protocol):
    """What is measured: a trained model or an exported one."""

    @property
    def codec(self) -> Codec: ...

    @property
    def columns(self) -> tuple[Column, ...]: ...

    def plan(self) -> SamplingPlan: ...

    def given(self, count: int, **asked: Any) -> Mapping[str, NDArray[Any]]: ...


class ModelFacts(NamedTuple):
    """What of a model enters the protocol it is measured under."""

    sampling: SamplingConfig
    variance: str
    """Of its process, which the ancestral sampler has unless the plan says otherwise."""
    weights: str
    """Which of a training's weights it has."""
    columns: Sequence[Column] = ()
    """What it is conditioned on."""
    guide: str | None = None
    """The model that guides it, if another does."""
    other_plans: Mapping[str, Mapping[str, Any]] = {}
    """Of a cascade how its other links draw, by their names; the rest is of its leading link."""


def facts_of(drawer: Drawer) -> ModelFacts:
    """What of a model enters the protocol it is measured under, with its own plan.

    Raises:
        UserError: its plan is not one that this version knows.
    """
    process, sampling = drawer.choices
    plan = validate(SamplingConfig, dict(sampling), drawer.plan_source)
    return ModelFacts(plan, process["variance"], drawer.weights, drawer.columns, drawer.guide_mark, drawer.other_plans)


@dataclass(frozen=True)
class Measurement:
    """What a model scores, how that was measured, and what it looks like."""

    metrics: dict[str, float | int]
    protocol: EvaluationProtocol
    pictures: dict[str, Image.Image]
    """By file name, without captions."""


def asked_for(options: EvaluationConfig, columns: Sequence[Column], data: PreparedData) -> dict[str, Any]:
    """What a model is asked for when it is measured, as `Drawer.given` and `Drawer.batches` take it. Nothing, where
    the values are drawn as often as they are in the training data. An upsampler enlarges the validation images, and a
    model with a control is shown their hints.
    """
    if needed(columns):
        return like_validation(columns, data, np.arange(min(options.samples, len(data.split("validation")))))
    if options.labels == "frequencies":
        return {}
    return {column.name: range(len(column.classes)) for column in columns if isinstance(column, LabelColumn)}


def _asked(options: EvaluationConfig, columns: Sequence[Column], manifest: Manifest, root: Path) -> dict[str, Any]:
    """The fields of the protocol on what a model is asked for, and by what the answer is judged.

    A model that does not know how often each class is in its training data, as an imported one, draws all equally
    often.
    """
    low, hints, asked = low_column(columns), hint_columns(columns), dict[str, Any]()
    if low is not None:
        asked["lows"] = f"validation at {'×'.join(map(str, low.shape[:2]))}"
    if hints:
        asked["hints"] = f"validation, {', '.join(map(str, hints))}"
    like_data = bool(needed(columns))
    if fills_in(columns):
        asked["inpainted"] = min(options.samples, manifest.counts.validation)
    for column in columns:
        if isinstance(column, LabelColumn):
            own = "balanced" if column.counts is None else options.labels
            asked["labels"] = "validation" if like_data else own
            asked["labels_sha256"] = manifest.labels_sha256
        if isinstance(column, PromptColumn):
            asked["captions_sha256"] = manifest.captions_sha256
            asked["held_out_samples"] = None if like_data else options.held_out_samples
            if options.clip is not None and not like_data:
                asked |= {"judge": judge_mark(options.clip, root), "judge_candidates": CANDIDATES}
    return asked


def captioned_of(drawer: Drawer, given: Given, data: PreparedData, options: EvaluationConfig) -> Captioned | None:
    """What a model with captions is asked for when it is measured. None: it has no captions, or it is shown what to
    draw, as an upsampler is.

    Args:
        given: the values of its columns for each sample, as `Drawer.given` has them.
    """
    column = next((column for column in drawer.columns if isinstance(column, PromptColumn)), None)
    if column is None or needed(drawer.columns):
        return None
    return Captioned(column.tokenizer, given[column.name], evenly(data.held_out_captions, options.held_out_samples))


def check_fit(samples: Sampled, data: PreparedData, name: str, plan: str) -> None:
    """Check that a model can be measured with the data, by its plan.

    Args:
        name: what messages call it.
        plan: what they call its plan.

    Raises:
        UserError: the model and the data are of two kinds or shapes, or the plan is not one of the model's.
    """
    if samples.codec.name != data.codec.name:
        raise UserError(f"{name} makes {samples.codec.name}, but the prepared data are {data.codec.name}")
    if samples.codec.shape != data.codec.shape:
        made, prepared = ("×".join(map(str, shape)) for shape in (samples.codec.shape, data.codec.shape))
        advice = ""
        if data.codec.pictures and samples.codec.shape[0] < data.codec.shape[0]:
            advice = "; a model of smaller images is measured as a part of a cascade"
        raise UserError(f"{name} makes {data.codec.name} of {made}, but the prepared data are of {prepared}{advice}")
    for column in samples.columns:
        if isinstance(column, LabelColumn) and column.classes != data.manifest.classes:
            raise UserError(f"{name} was trained on other classes than the prepared data have")
        if isinstance(column, GivenColumn) and column.shape != data.manifest.hint_shape:
            raise UserError(f"{name} was trained with hints beside the images, and the prepared data have no such ones")
        if isinstance(column, PromptColumn) and data.manifest.captions_sha256 is None:
            raise UserError(f"{name} was trained on captions, and the prepared data have none")
    one = like_validation(samples.columns, data, np.arange(1)) if needed(samples.columns) else {}
    try:
        samples.given(1, **one)
    except ValueError as error:
        raise UserError(f"{name} cannot be measured by itself: {error}") from None
    check_plan(samples, name, plan)


def check_plan(samples: Sampled, name: str, plan: str) -> None:
    """Check that a model can be sampled by its plan; the arguments are those of `check_fit`.

    Raises:
        UserError: it cannot.
    """
    try:
        samples.plan()
    except ValueError as error:
        raise UserError(f"{name} cannot be sampled by {plan}: {error}") from None


def measure(
    drawer: Drawer,
    params: Params,
    facts: ModelFacts,
    *,
    data: PreparedData,
    root: Path,
    device: torch.device,
    name: str,
    drawn: Iterable[NDArray[Any]] | None = None,
    show: Show = unseen,
) -> Measurement:
    """Compute the figures of a model that fits the data.

    Args:
        drawer: the model, with the plan it is measured under.
        facts: of the model.
        name: what messages call it.
        drawn: its evaluation.samples data of params.seed, in batches, asked for as `asked_for` says; None: they are
            drawn here.
        show: the progress of long computations.

    Raises:
        UserError: the extractor is missing or damaged, or of other classes.
        NotFiniteError: the model draws NaN or infinite values, or a figure is one.
    """
    options = params.evaluation
    asked = asked_for(options, drawer.columns, data)
    given = drawer.given(options.samples, seed=params.seed, **asked)
    captioned = captioned_of(drawer, given, data, options)
    figures, identity = _measure_of(params, data, root, device, given, captioned, show)
    compared = compared_with_shown(drawer.columns, data, given)
    judge = judge_of(options.clip, captioned, data, seed=params.seed, root=root, device=device)
    compared += [judge] if judge else []
    draws: dict[str, Any] = {"seed": params.seed, "batch_size": options.batch_size}
    texts = captioned.held_out if captioned else []
    with show(options.samples + len(texts), data.codec.unit, f"samples of {name}") as done:
        try:
            for batch in drawn or drawer.batches(options.samples, **draws, **asked):
                figures.add(batch)
                for each in compared:
                    each.add(batch)
                done(len(batch))
            for batch in drawer.batches(len(texts), **draws, prompt=texts) if texts else ():
                assert isinstance(figures, ImageMeasure)  # points and sequences have no captions
                figures.add_held_out(batch)
                if judge:
                    judge.add_held_out(batch)
                done(len(batch))
        except NotFiniteError as error:
            raise NotFiniteError(f"{name} cannot be measured: {error}") from None
    protocol = protocol_of(params, facts, data, identity, root=root)
    if protocol.splits < options.splits:
        print(
            f"{name}: the Inception Score has {protocol.splits} parts, not evaluation.splits = {options.splits}: "
            f"there are {len(data.split('validation'))} validation images and {options.samples} samples"
        )
    found = figures.figures()
    for each in compared:
        found |= each.figures()
    if protocol.inpainted:
        assert isinstance(figures, ImageMeasure)  # points and sequences have no masks
        found |= filling(drawer, data, figures, protocol.inpainted, **draws, show=show)
    return Measurement(finite(found, name), protocol, figures.pictures())


class Compared(Protocol):
    """Figures of drawn images beside what the model was shown."""

    def add(self, drawn: NDArray[np.uint8]) -> None:
        """Take the next images into account, [n, H, W, C]."""
        ...

    def figures(self) -> dict[str, float]:
        """Of all of them, by their keys in metrics.json."""
        ...


def compared_with_shown(columns: Sequence[Column], data: PreparedData, given: Given) -> list[Compared]:
    """What measures images that are drawn of `asked_for`: nothing, for a model that is shown no picture."""
    low, hints = low_column(columns), hint_columns(columns)
    found: list[Compared] = [] if low is None else [Enlargement(low, data)]
    return [*found, *(Agreement(h, data.codec, given[h.name]) for h in hints if isinstance(h, DerivedHint))]


def finite(figures: dict[str, float], name: str) -> dict[str, float]:
    """The figures, if they are numbers.

    Raises:
        NotFiniteError: one is NaN or infinite.
    """
    for key, value in figures.items():
        if not math.isfinite(value):
            raise NotFiniteError(f"{name} cannot be measured: {key} is {value}")
    return figures


def _measure_of(
    params: Params,
    data: PreparedData,
    root: Path,
    device: torch.device,
    given: Given,
    captioned: Captioned | None,
    show: Show,
) -> tuple[ImageMeasure | ValueMeasure, dict[str, Any]]:
    """What measures this kind of data, and the identity of the features it does it in."""
    if data.codec.pictures:
        extractor = load_extractor(root / EXTRACTOR, weights=params.extractor.weights, device=device)
        asked = given.get("label")
        measure = ImageMeasure(params, data, extractor, root / FEATURES, show, asked=asked, captioned=captioned)
        return measure, extractor.identity
    identity = load_coordinates(root / EXTRACTOR)
    return ValueMeasure(params, data, identity["bandwidth"], show), identity


def protocol_of(
    params: Params, facts: ModelFacts, data: PreparedData, extractor: Mapping[str, Any], *, root: Path = Path()
) -> EvaluationProtocol:
    """How such a model is measured.

    Args:
        extractor: the identity of what it is measured by.
        root: the project's folder.

    Raises:
        UserError: there is no model that `evaluation.clip` names.
    """
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
        **{**decisive_choices(facts.sampling.model_dump(), variance=facts.variance), "guide": facts.guide},
        weights=facts.weights,
        other_plans=facts.other_plans,
        **_asked(options, facts.columns, data.manifest, root),
        splits=score_splits(options, len(validation)) if data.codec.pictures else options.splits,
        kid_subsets=KID_SUBSETS,
        kid_subset_size=KID_SUBSET_SIZE,
        neighbourhood=NEIGHBOURHOOD,
        nll_samples=options.nll_samples,
        # The likelihood of continuous data is not bounded.
        nll_timesteps=options.nll_timesteps if data.codec.levels and options.nll_samples else None,
        nll_ode_steps=options.nll_ode_steps,
        resamples=options.resamples,
        seed=params.seed,
    )
