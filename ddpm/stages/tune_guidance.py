"""`ddpm tune-guidance V`: the guidance scale and interval that a trained model draws best with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ddpm.compute.device import pick_device
from ddpm.config.params import Params
from ddpm.config.sampling import SamplingConfig, guided
from ddpm.data.store import PreparedData
from ddpm.drawer import Drawer
from ddpm.errors import UserError
from ddpm.evaluation.measure import Measurement, asked_for, check_fit, facts_of, measure
from ddpm.evaluation.scores import ImageScores, ValueScores, scores_of
from ddpm.figures.figure import FIGURES, Reading
from ddpm.figures.seeds import seeds_of
from ddpm.layout import PREPARED
from ddpm.stages.compose import open_trained
from ddpm.stages.progress import bar, counted, show

Interval = tuple[float, float] | None  # None: the scale holds everywhere

SCALES = (1.0, 1.25, 1.5, 2.0, 3.0, 5.0)
CLASSIFIER_SCALES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)  # with a classifier as guide
INTERVALS: tuple[Interval, ...] = (None, (0.2, 0.8))

# Beside the figure that decides.
_SHOWN = ("class_accuracy", "retrieval_5_pixels", "clip_score", "r_precision", "precision", "recall")


@dataclass(frozen=True)
class Tuned:
    """What a search found.

    Attributes:
        planned: the model of params.yaml that has the plan: of a cascade its leading link.
        best: the plan that scored best in the search.
        own: the model's plan in params.yaml.
        tried: how many plans were searched.
        search_seed, fresh_seed: of the data that the search drew, and of those that the figures are of.
        measured: of `best` and, if it is another plan, of `own`, on the fresh seed.
    """

    planned: str
    best: SamplingConfig
    own: SamplingConfig
    tried: int
    search_seed: int
    fresh_seed: int
    measured: tuple[Measurement, ...]

    def lines(self, variant: str) -> list[str]:
        """As it is printed; the last two lines are for params.yaml, where `planned` has the plan."""
        key = next(key for key in ("fid", "wasserstein") if key in self.measured[0].metrics)
        name, samples = FIGURES[key].name, self.measured[0].protocol.samples
        said = [
            f"{variant}: {self.tried} settings searched by {name} with seed {self.search_seed}; the figures below are "
            f"of {samples} other samples, of seed {self.fresh_seed}",
            *(f"{_setting(plan)}: {_figures(found)}" for plan, found in zip(self._plans, self.measured, strict=True)),
            self._verdict(key),
            f"under models.{self.planned}.sampling in params.yaml:",
        ]
        low_high = self.best.guidance_interval
        interval = "null" if low_high is None else f"[{low_high[0]:g}, {low_high[1]:g}]"
        return [*said, f"  guidance_scale: {self.best.guidance_scale:g}", f"  guidance_interval: {interval}"]

    @property
    def _plans(self) -> list[SamplingConfig]:
        return [self.best, self.own][: len(self.measured)]

    def _verdict(self, key: str) -> str:
        if len(self.measured) == 1:
            return "this is the current setting"
        best, own = (Reading.of(found.metrics, key) for found in self.measured)
        assert best is not None
        assert own is not None
        if best.overlaps(own):
            return f"the intervals of the {FIGURES[key].name} overlap: the difference may be chance"
        better = "better" if best.value < own.value else "worse"
        return f"the {FIGURES[key].name} of the setting found is {better} than that of the current one"


def tune_guidance(
    params: Params,
    variant: str,
    *,
    scales: Sequence[float] | None = None,
    intervals: Sequence[Interval] = INTERVALS,
    samples: int | None = None,
    root: Path = Path(),
) -> Tuned:
    """Search the guidance of the model's plan in params.yaml by the figure that models are ranked by, then measure the
    best setting and the current one on other samples. Of a cascade it is the plan of the leading link; the others keep
    theirs.

    All settings draw the same noise and are asked for the same classes. The samples of the search, those of the
    figures, and those of `ddpm evaluate` are of three seeds: no figure is of samples that it was chosen by.

    Args:
        scales, intervals: every pair is a setting. Scales None: `SCALES`, or `CLASSIFIER_SCALES` of a model whose guide
            is a classifier.
        samples: of each setting; None: `evaluation.samples`.

    Raises:
        UserError: no such model, one that cannot be guided, or numbers that are no scale or no interval.
    """
    planned = params.planned(variant)
    own = params.variant(planned).sampling
    count = params.evaluation.samples if samples is None else samples
    options = params.evaluation.model_copy(update={"samples": count, "sampling": None})
    params = params.model_copy(update={"evaluation": options})
    device, data = pick_device(), PreparedData.open(root / PREPARED)
    model = open_trained(params, variant, device, root=root)
    if not model.guidable:
        raise UserError(f"models/{variant} cannot be guided: it {model.why_not_guidable()}")
    unguided = model.unguided_scale
    check_fit(_planned(model, guided(own, unguided, "", None)), data, f"models/{variant}", "its plan")
    if scales is None:
        scales = CLASSIFIER_SCALES if model.by_classifier else SCALES
    plans = _plans(own, scales, intervals, unguided)
    scores = scores_of(params, data, root, device, show)
    if options.samples < scores.least:
        raise UserError(f"--samples must be at least {scores.least}, found {options.samples}")
    seeds = seeds_of(params.seed)
    best = _search(model, plans, scores, params, data, seeds.search)
    chosen = [best] if best == own else [best, own]
    measured = tuple(
        _measured(_planned(model, plan), params, seeds.tuned, data, root, device, variant) for plan in chosen
    )
    return Tuned(planned, best, own, len(plans), seeds.search, seeds.tuned, measured)


def _plans(
    own: SamplingConfig, scales: Sequence[float], intervals: Sequence[Interval], unguided: float
) -> list[SamplingConfig]:
    """Each setting once: at the scale without guidance the interval has no effect, and [0, 1] is everywhere."""
    plans: list[SamplingConfig] = []
    for scale in scales:
        for interval in intervals:
            everywhere = interval in (None, (0.0, 1.0)) or scale == unguided
            plan = guided(own, scale, "--scales or --intervals", None if everywhere else interval)
            if plan not in plans:
                plans.append(plan)
    return plans


def _search(
    model: Drawer,
    plans: Sequence[SamplingConfig],
    scores: ImageScores | ValueScores,
    params: Params,
    data: PreparedData,
    seed: int,
) -> SamplingConfig:
    """The plan whose figure is lowest; the first of equal ones."""
    count, asked = params.evaluation.samples, asked_for(params.evaluation, model.columns, data)
    found = []
    with bar(count * len(plans), "samples", "search of the guidance") as progress:
        for plan in plans:
            drawer = _planned(model, plan)
            drawn = drawer.batches(count, seed=seed, batch_size=params.evaluation.batch_size, **asked)
            found.append(scores.distance(counted(drawn, progress), count))
    return plans[found.index(min(found))]


def _measured(
    model: Drawer, params: Params, seed: int, data: PreparedData, root: Path, device: torch.device, variant: str
) -> Measurement:
    """As an evaluation, with another seed."""
    params, name = params.model_copy(update={"seed": seed}), f"models/{variant}"
    return measure(model, params, facts_of(model), data=data, root=root, device=device, name=name, show=show)


def _planned(model: Drawer, plan: SamplingConfig) -> Drawer:
    """The same weights with another plan."""
    return model.sampled_by(plan.model_dump())


def _setting(plan: SamplingConfig) -> str:
    interval = plan.guidance_interval
    where = "" if interval is None else f" in [{interval[0]:g}, {interval[1]:g}]"
    return f"guidance scale {plan.guidance_scale:g}{where}"


def _figures(measured: Measurement) -> str:
    keys = [key for key in ("fid", "wasserstein", *_SHOWN) if key in measured.metrics]
    protocol = measured.protocol.as_dict()
    found = ", ".join(f"{FIGURES[key].named(protocol, short=True)} {Reading.of(measured.metrics, key)}" for key in keys)
    return f"{found} (protocol {measured.protocol.id})"
