"""`ddpm compare A B …`: several models side by side, as one page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm.compute.device import pick_device
from ddpm.config.base import validate
from ddpm.config.params import Params
from ddpm.config.sampling import SamplingConfig, guided
from ddpm.data.store import PreparedData
from ddpm.drawer import Drawer
from ddpm.errors import UserError
from ddpm.evaluation.likelihood import likelihood_table, split_bounds
from ddpm.evaluation.measure import ModelFacts, asked_for, captioned_of, facts_of, protocol_of
from ddpm.evaluation.page import Pictures, page
from ddpm.evaluation.pictures import beside, credit, enlarged, save_png
from ddpm.evaluation.scores import Scores, scores_of
from ddpm.figures.comparison import Compared, Comparison, Curve, Recorded, ranked
from ddpm.figures.figure import FIGURES
from ddpm.figures.seeds import seeds_of
from ddpm.files import atomic_directory, write_bytes, write_json
from ddpm.layout import (
    COMPARISON_PAGE,
    COMPARISON_PICTURE,
    COMPARISON_RECORD,
    MODELS,
    PREPARED,
    REPORTS,
    find_model,
    is_uri,
)
from ddpm.model import Model, load
from ddpm.stages.measure import measured_by
from ddpm.stages.progress import Bar, bar, counted, show
from ddpm.stages.sample import open_model

if TYPE_CHECKING:
    from ddpm.tracking import Evaluation

STEPS = (5, 10, 20, 50, 100)


def compare(
    params: Params,
    models: Sequence[str],
    out: Path,
    *,
    steps: Sequence[int] | None = None,
    sampler: str = "ddim",
    samples: int | None = None,
    guidance_scales: Sequence[float] | None = None,
    rank: bool = False,
    root: Path = Path(),
) -> Comparison:
    """Draw from all models with the same noise, measure them over the number of steps, and write `out`: report.html,
    a page with its pictures in it, and comparison.json, its numbers.

    Everything is drawn with a seed of its own, so that a setting chosen by these curves is not measured by `ddpm
    evaluate` on the samples that it was chosen by. Each model has its own guidance throughout.

    Args:
        models: models of params.yaml, model directories, deploy directories or MLflow URIs.
        out: a new directory, or that of an earlier comparison.
        steps: of the plans by which all are measured, of a cascade its leading link; None: those of `STEPS` that all
            have.
        sampler: that they are measured by. Each model's pictures are drawn by its own plan too.
        samples: how many are measured at each number of steps; None: `evaluation.samples`.
        guidance_scales: at which the models that can be guided are measured too, each by its own plan otherwise; None:
            they are not.
        rank: show the models by the figure that models are ranked by, the best first.

    Raises:
        UserError: no such model, models of other data than the prepared ones, a plan that cannot be made, an `out`
            that is something else, models to rank that were measured under different protocols, or guidance scales
            where no model can be guided.
    """
    count = params.evaluation.samples if samples is None else samples
    _check(params, models, out, count, root)
    scales = sorted(
        {guided(SamplingConfig(), scale, "--guidance-scale").guidance_scale for scale in guidance_scales or ()}
    )
    data, device = PreparedData.open(root / PREPARED), pick_device()
    measure: Scores = scores_of(params, data, root, device, show)
    opened = [_open(params, model, data, measure.identity, device, root) for model in models]
    if rank:
        opened = _under_one_protocol(opened, root)
    _check_data(opened, data)
    opened = _named_apart(opened)
    if rank:
        order = ranked([each.compared for each in opened])
        opened.sort(key=lambda each: order.index(each.compared))
    plans = _plans(sampler, steps, opened)
    drawing = params.model_copy(update={"seed": seeds_of(params.seed).comparison})
    if scales:
        _check_guidance(opened, count, measure.least)

    own = []
    for each in opened:
        with bar(measure.shown, data.codec.unit, f"pictures of {each.compared.name}") as progress:
            own.append(np.concatenate([*counted(_drawn(each.samples, measure.shown, drawing, data), progress)]))
    names = [each.compared.name for each in opened]
    curves, drawn = _over_steps(opened, plans, measure, count, drawing, data)
    pictures = [Pictures("by its own plan", measure.pictures(names, own))]
    for plan, shown in zip(plans, drawn, strict=True):
        pictures.append(Pictures(f"{sampler}, {plan.steps} steps", measure.pictures(names, shown)))
    comparison = Comparison(
        models=[_with_likelihood(each, params, data) for each in opened],
        key=measure.key,
        over_steps=curves,
        conditions=_conditions(drawing, plans[0], count, data, measure),
        ranked=rank,
        guidance={each.compared.name: found for each in opened if (found := each.guidance)},
        over_guidance=_over_guidance(opened, scales, measure, count, drawing, data) if scales else {},
        attributions=list(dict.fromkeys(text for each in opened if (text := each.samples.attribution))),
    )
    with atomic_directory(out) as temporary:
        write_bytes(temporary / COMPARISON_PAGE, page(comparison, pictures).encode())
        write_json(temporary / COMPARISON_RECORD, comparison.as_dict())
        facts = credit("; ".join(comparison.attributions) or None)
        save_png(enlarged(beside(pictures[0].images)), temporary / COMPARISON_PICTURE, facts)
    return comparison


def _check(params: Params, models: Sequence[str], out: Path, samples: int, root: Path) -> None:
    """Refuse what can be refused before anything is read."""
    for model in models:
        if model not in params.models and not is_uri(model):
            find_model(model, root=root)
    if twice := [model for number, model in enumerate(models) if model in models[:number]]:
        raise UserError(f"{twice[0]} is named twice")
    if samples < 2:
        raise UserError(f"--samples must be at least 2, found {samples}")
    if out.exists() and not (out / COMPARISON_RECORD).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: exists and is no comparison: name a new directory, or remove it")


def _plans(sampler: str, steps: Sequence[int] | None, opened: Sequence[Opened]) -> list[SamplingConfig]:
    """What all are measured by, the fewest steps first."""
    shortest = min(opened, key=lambda each: each.timesteps)
    longest = shortest.timesteps
    usual = [number for number in STEPS if number <= longest] or [longest]
    chosen_steps = sorted(set(steps or usual))
    for number in chosen_steps:
        if not 1 <= number <= longest:
            raise UserError(
                f"--steps: expected numbers from 1 to {longest}, the timesteps of {shortest.compared.name}; "
                f"found {number}"
            )
    return [validate(SamplingConfig, {"sampler": sampler, "steps": number}, "--sampler") for number in chosen_steps]


_GUIDANCE = ("guide", "guidance_scale", "guidance_interval")
# What the models have in common when they are measured over the steps; of their plans all but these.
_COMMON = (
    *("extractor", "extractor_sha256", "train_sha256", "validation_sha256", "reference", "reference_count"),
    "samples",
    *(field for field in SamplingConfig.model_fields if field not in ("steps", "variance", *_GUIDANCE)),
    "seed",
)


def _conditions(
    params: Params, plan: SamplingConfig, samples: int, data: PreparedData, measure: Scores
) -> dict[str, Any]:
    """The fields of the protocol that hold for all models and numbers of steps."""
    evaluation = params.evaluation.model_copy(update={"samples": samples})
    as_measured = params.model_copy(update={"evaluation": evaluation})
    fields = protocol_of(as_measured, ModelFacts(plan, "", ""), data, measure.identity).as_dict()
    # A field at its default may be left out.
    return {name: fields[name] for name in _COMMON if name in fields}


# --- Opening ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Opened:
    """A model to compare, ready to be drawn from."""

    compared: Compared
    samples: Drawer
    uri: str | None = None
    """Of a registered version, without an alias."""
    protocols: tuple[str, ...] = ()
    """Of a registered version, all that it was measured under."""

    @property
    def timesteps(self) -> int:
        """T of its process."""
        return int(self.samples.choices[0]["timesteps"])

    @property
    def plan(self) -> SamplingConfig:
        """Its own."""
        return validate(SamplingConfig, self.samples.choices[1], self.compared.model)

    @property
    def guidance(self) -> dict[str, Any]:
        """What guides it, by its own plan; empty without guidance."""
        if self.plan.guidance_scale == self.samples.unguided_scale:
            return {}
        return {**self._own_guidance(), "guide": self.samples.guide_mark}

    def _own_guidance(self) -> dict[str, Any]:
        own = self.plan
        return {name: getattr(own, name) for name in _GUIDANCE}

    def guided_by(self, plan: SamplingConfig) -> Drawer:
        """The same weights with another plan, guided as by its own."""
        return self.sampled_by(plan.model_copy(update=self._own_guidance()))

    def sampled_by(self, plan: SamplingConfig) -> Drawer:
        """The same weights with another plan; of a cascade, the leading link's."""
        return self.samples.sampled_by(plan.model_dump())


def _open(
    params: Params, model: str, data: PreparedData, extractor: Mapping[str, Any], device: torch.device, root: Path
) -> Opened:
    """What MODEL names, with what is recorded of it: of a registered version its figures under today's protocol, if it
    was measured under that.
    """
    if model in params.models:
        loaded = load(root / MODELS / model, device).sampled_by(params.models[model].sampling, root=root)
        return _opened(model, model, root / REPORTS / model, loaded)
    if is_uri(model):
        from ddpm import tracking

        exactly = tracking.pinned(model, root)  # an alias may move while this reads
        samples = open_model(exactly, root=root)
        today = protocol_of(params, facts_of(measured_by(params, samples)), data, extractor, root=root)
        found = tracking.evaluation_of(exactly, root, today.id)
        compared = Compared(model.removeprefix("models:/"), model, _recorded(found))
        return Opened(compared, samples, exactly, found.protocols)
    directory = find_model(model, root=root)
    return _opened(directory.resolve().name, model, _reports_of(directory), open_model(str(directory)))


def _recorded(found: Evaluation) -> Recorded:
    return Recorded.of(found.figures.metrics, found.figures.protocol, found.likelihood, found.version)


def _under_one_protocol(opened: Sequence[Opened], root: Path) -> list[Opened]:
    """With figures under a protocol that all models have some under, if there is one; else as they are.

    Of several it is the one that most models have been opened with: today's, if any was measured under it.
    """
    from ddpm import tracking

    had = [each.compared.protocol_id for each in opened]
    known = [{*each.protocols, *([own] if own else [])} for each, own in zip(opened, had, strict=True)]
    common = sorted(set.intersection(*known), key=lambda name: (-had.count(name), name))
    if len(set(had)) == 1 or not common:
        return list(opened)
    chosen, ranked_under = common[0], []
    for each in opened:
        if each.uri and each.compared.protocol_id != chosen:
            compared = replace(each.compared, recorded=_recorded(tracking.evaluation_of(each.uri, root, chosen)))
            each = replace(each, compared=compared)
        ranked_under.append(each)
    print(f"ranked under protocol {chosen}, the one that all of them were measured under")
    return ranked_under


def _opened(name: str, model: str, reports: Path, samples: Drawer) -> Opened:
    """With the figures in a reports directory, unless another training of the model has them."""
    return Opened(Compared(name, model, Recorded.read(reports, samples.fingerprint or None)), samples)


def _reports_of(directory: Path) -> Path:
    """Where the figures of models/V or deploy/V are, in this project or in another; of others there are none."""
    directory = directory.resolve()
    return directory.parents[1] / REPORTS / directory.name if len(directory.parents) > 1 else directory


def _named_apart(opened: Sequence[Opened]) -> list[Opened]:
    """Those that share a short name under what the user wrote."""
    names = Counter(each.compared.name for each in opened)
    return [
        each
        if names[each.compared.name] == 1
        else replace(each, compared=replace(each.compared, name=each.compared.model))
        for each in opened
    ]


def _check_data(opened: Sequence[Opened], data: PreparedData) -> None:
    for each in opened:
        kind = each.samples.codec
        if (kind.name, kind.shape) != (data.codec.name, data.codec.shape):
            raise UserError(
                f"{each.compared.model} makes {_size(kind.name, kind.shape)}, but the prepared data are "
                f"{_size(data.codec.name, data.codec.shape)}"
            )
        try:
            each.samples.plan()
        except ValueError as error:
            raise UserError(f"{each.compared.model} cannot be sampled by its plan: {error}") from None


def _size(name: str, shape: tuple[int, ...]) -> str:
    return f"{name} of {'×'.join(map(str, shape))}"


def _with_likelihood(opened: Opened, params: Params, data: PreparedData) -> Compared:
    """With the bound's terms; computed here of a trained model whose evaluation has not written them down."""
    compared, model = opened.compared, opened.samples
    if compared.recorded.likelihood or not isinstance(model, Model):
        return compared
    bounds = split_bounds(model, data, params.evaluation, seed=params.seed, show=show)
    return replace(compared, recorded=compared.recorded.with_likelihood(likelihood_table(bounds)))


# --- Measuring -------------------------------------------------------------------------------------------------------


def _over_steps(
    opened: Sequence[Opened],
    plans: Sequence[SamplingConfig],
    measure: Scores,
    count: int,
    params: Params,
    data: PreparedData,
) -> tuple[list[Curve], list[list[NDArray[Any]]]]:
    """Each model's figure by every plan, over the evaluations of networks that a datum takes: of a cascade those of all
    links, with guidance both of a step. And of each plan the first data that each model has drawn.
    """
    curves: list[Curve] = [[] for _ in opened]
    shown: list[list[NDArray[Any]]] = [[] for _ in plans]
    drawers = [[each.guided_by(plan) for each in opened] for plan in plans]
    costs = [[drawer.evaluations(drawer.plan()) for drawer in by_plan] for by_plan in drawers]
    with bar(count * sum(map(sum, costs)), "evaluations", "samples by fewer and more steps") as progress:
        for by_plan, work, pictured in zip(drawers, costs, shown, strict=True):
            for drawer, evaluations, curve in zip(by_plan, work, curves, strict=True):
                first: list[NDArray[Any]] = []
                drawn = _watched(_drawn(drawer, count, params, data), first, measure.shown, progress, evaluations)
                curve.append((evaluations, measure.distance(drawn, count)))
                pictured.append(np.concatenate(first))
    return curves, shown


def _drawn(samples: Drawer, count: int, params: Params, data: PreparedData) -> Iterator[NDArray[Any]]:
    """What an evaluation would draw of the model, but so many."""
    options = params.evaluation
    asked = asked_for(options, samples.columns, data)
    return samples.batches(count, seed=params.seed, batch_size=options.batch_size, **asked)


def _check_guidance(opened: Sequence[Opened], count: int, least: int) -> None:
    """Refuse scales where no model can be guided, or with too few samples for the figures."""
    if count < least:
        raise UserError(f"--samples must be at least {least} with --guidance-scale, found {count}")
    if not any(each.samples.guidable for each in opened):
        names = ", ".join(each.compared.name for each in opened)
        raise UserError(
            f"--guidance-scale: {names} cannot be guided: that takes condition.label, with drop above 0 in "
            "training, or sampling.guide"
        )


def _over_guidance(
    opened: Sequence[Opened],
    scales: Sequence[float],
    measure: Scores,
    count: int,
    params: Params,
    data: PreparedData,
) -> dict[str, list[Curve]]:
    """By the figure's key, the curve of each model; empty of one that cannot be guided."""
    curves: dict[str, list[Curve]] = {}
    for position, each in enumerate(opened):
        if not each.samples.guidable:
            continue
        with bar(count * len(scales), "samples", f"guidance of {each.compared.name}") as progress:
            for scale in scales:
                samples = each.sampled_by(guided(each.plan, scale, "--guidance-scale"))
                drawn = _watched(_drawn(samples, count, params, data), [], 0, progress, 1)
                given = samples.given(count, seed=params.seed, **asked_for(params.evaluation, samples.columns, data))
                captioned = captioned_of(samples, given, data, params.evaluation)
                found = measure.figures(drawn, count, captioned)
                for key, value in ((key, value) for key, value in found.items() if key in FIGURES):
                    curves.setdefault(key, [[] for _ in opened])[position].append((scale, value))
    return curves


def _watched(
    batches: Iterator[NDArray[Any]], first: list[NDArray[Any]], count: int, progress: Bar, work: int
) -> Iterator[NDArray[Any]]:
    """The batches, of which the first `count` data go into `first`; `work` is that of a datum."""
    for batch in batches:
        first.append(batch[: max(0, count - sum(map(len, first)))])
        progress.update(len(batch) * work)
        yield batch
