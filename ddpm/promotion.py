"""Which model version is the champion: a pure policy, applied by `ddpm.tracking`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ddpm.config import PromotionConfig

# The metric that models are ranked by, of images and of other data, and what people call it.
_HEADLINES = {"fid": "FID", "wasserstein": "Wasserstein distance"}

# Between models of one rank: the likelihood, and what an image costs. Lower is better.
_TIE_BREAKERS = {"nll_validation": "NLL", "gflops_per_image": "GFLOP an image"}

NAMES = {
    **_HEADLINES,
    "inception_score": "IS",
    "kid": "KID",
    "precision": "precision",
    "recall": "recall",
    "mmd": "MMD",
    **_TIE_BREAKERS,
}
_HIGHER_IS_BETTER = {"inception_score", "precision", "recall"}

# What a protocol says of the sampling plan, which is the model's own or one for all.
_PLAN_FIELDS = {"sampler", "steps", "variance", "eta", "spacing", "clip", "dynamic_threshold"}


def headline(metrics: Mapping[str, Any]) -> tuple[str, str]:
    """The key of the metric that models with these metrics are ranked by, and its name.

    Raises:
        KeyError: there is none.
    """
    for key, name in _HEADLINES.items():
        if key in metrics:
            return key, name
    raise KeyError(f"none of {', '.join(_HEADLINES)} among the metrics")


class Estimate(NamedTuple):
    """A figure and its interval; that of a figure without one is the figure alone."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, metrics: Mapping[str, float], key: str) -> Estimate:
        """The figure `key` with `key_low` and `key_high`; not a number where there is none."""
        value = metrics.get(key, math.nan)
        ends = [metrics.get(f"{key}_{end}", value) for end in ("low", "high")]
        return cls(value, min(ends), max(ends))

    def __str__(self) -> str:
        interval = f" [{self.low:.4f}, {self.high:.4f}]" if self.low < self.high else ""
        return f"{self.value:.4f}{interval}"


@dataclass(frozen=True)
class Candidate:
    """What the policy knows of a model version."""

    name: str
    """How a reason speaks of it, such as `version 3`."""
    metrics: Mapping[str, float]
    """Its figures; those that it lacks are not compared."""
    protocol: Mapping[str, Any]
    """How they were measured, field by field, its identifier under `id`."""
    parity_passed: bool
    """Whether the exported model was shown to be the trained one."""
    taken_back: str | None = None
    """Why somebody took the alias from it, if that happened."""


@dataclass(frozen=True)
class Decision:
    """Whether the challenger becomes the champion, and why or why not, in one line."""

    promote: bool
    reason: str
    figures: tuple[dict[str, str], ...] = ()
    """What was compared: rows of `figure`, `challenger` and `champion`."""

    def __str__(self) -> str:
        return f"{'champion' if self.promote else 'not champion'}: {self.reason}"


def decide(challenger: Candidate, champion: Candidate | None, policy: PromotionConfig) -> Decision:
    """Promote a sound model where there is no champion, else one that is better under the champion's protocol.

    Better is a figure (FID; Wasserstein distance) whose whole interval is below the champion's. Where the intervals
    overlap, the likelihood and the cost of an image decide: one must be lower by more than `policy.gain`, neither may
    be higher by more. Either way no figure may be worse than `policy.tolerances` allows. Of two models at most one is
    better than the other.

    Figures measured under different protocols are never ranked; the reason then names the fields that differ.
    """
    key, measure = headline(challenger.metrics)
    ours = Estimate.of(challenger.metrics, key)
    if not challenger.parity_passed:
        return Decision(False, "the exported model was not shown to be the trained one")
    if not math.isfinite(ours.value):
        return Decision(False, f"{measure} {ours.value} is no figure")
    if challenger.taken_back:
        return Decision(False, f"it was champion and was taken back: {challenger.taken_back}")
    if champion is None:
        return Decision(True, f"{measure} {ours}, and there was no champion to beat", _figures(challenger, None))
    theirs = Estimate.of(champion.metrics, key)
    if differences := list(differing_fields(champion.protocol, challenger.protocol)):
        return Decision(
            False,
            f"not ranked: {measure} {ours} and {theirs} of {champion.name} were measured under different protocols: "
            f"{'; '.join(differences)}",
            _figures(challenger, None),
        )
    promote, reason = _ranked(challenger, champion, policy.gain)
    if promote and (worse := list(_much_worse(challenger, champion, policy.tolerances.model_dump()))):
        promote, reason = False, f"{reason}; but {'; '.join(worse)}"
    return Decision(promote, reason, _figures(challenger, champion))


def _ranked(challenger: Candidate, champion: Candidate, gain: float) -> tuple[bool, str]:
    """Whether the challenger's headline, or where intervals overlap its tie-breakers, are better; and the numbers."""
    key, measure = headline(challenger.metrics)
    ours, theirs = Estimate.of(challenger.metrics, key), Estimate.of(champion.metrics, key)
    comparison = f"{ours} against {theirs} of {champion.name}"
    if ours.high < theirs.low:
        return True, f"lower {measure}: {comparison}"
    if ours.low > theirs.high:
        return False, f"no lower {measure}: {comparison}"
    changes = {
        name: (challenger.metrics[key], champion.metrics[key])
        for key, name in _TIE_BREAKERS.items()
        if key in challenger.metrics and key in champion.metrics
    }
    lower = [name for name, (mine, other) in changes.items() if _clearly_lower(mine, other, gain)]
    higher = [name for name, (mine, other) in changes.items() if _clearly_lower(other, mine, gain)]
    numbers = "; ".join(f"{name} {mine:.4g} against {other:.4g}" for name, (mine, other) in changes.items())
    if lower and not higher:
        return True, f"lower {' and '.join(lower)} at the same {measure}: {comparison}; {numbers}"
    return False, f"no lower {measure}: {comparison}" + (f"; {numbers}" if numbers else "")


def _clearly_lower(one: float, other: float, gain: float) -> bool:
    return other - one > gain * max(abs(one), abs(other))


def _much_worse(challenger: Candidate, champion: Candidate, tolerances: Mapping[str, float | None]) -> Iterator[str]:
    """Each figure of the challenger that is worse than its tolerance allows."""
    for key, tolerance in tolerances.items():
        if tolerance is None or key not in challenger.metrics or key not in champion.metrics:
            continue
        ours, theirs = challenger.metrics[key], champion.metrics[key]
        loss = theirs - ours if key in _HIGHER_IS_BETTER else ours - theirs
        if loss > tolerance * abs(theirs):
            yield f"{NAMES[key]} {ours:.4g} against {theirs:.4g} is worse by more than {100 * tolerance:g} %"


def _figures(challenger: Candidate, champion: Candidate | None) -> tuple[dict[str, str], ...]:
    """The numbers of a decision, a row a figure."""

    def shown(candidate: Candidate | None, key: str) -> str:
        return str(Estimate.of(candidate.metrics, key)) if candidate and key in candidate.metrics else ""

    return tuple(
        {"figure": name, "challenger": shown(challenger, key), "champion": shown(champion, key)}
        for key, name in NAMES.items()
        if key in challenger.metrics
    )


def differing_fields(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """Each field in which two protocols differ, as `field: before → after`; `id` only if nothing else does."""
    fields = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    for name in [name for name in fields if name != "id"] or fields:
        yield f"{name}: {_short(before.get(name))} → {_short(after.get(name))}"


def measuring_again_helps(champion: Mapping[str, Any], challenger: Mapping[str, Any], *, own_plan: bool) -> bool:
    """Whether the champion, measured once more, could come under the challenger's protocol.

    Args:
        champion: the protocol its figures have.
        challenger: the protocol they would have to have.
        own_plan: whether models are measured each by its own sampling plan; that does not change.
    """
    differing = {name for name in {*champion, *challenger} if champion.get(name) != challenger.get(name)}
    return bool(differing) and "weights" not in differing and not (own_plan and differing & _PLAN_FIELDS)


def _short(value: Any) -> str:
    """A value as a reason quotes it; hashes by their first digits."""
    text = str(value)
    return text if len(text) <= 32 else f"{text[:12]}…"
