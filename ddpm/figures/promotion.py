"""Which model version is the champion: a pure policy, applied by `ddpm.tracking`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ddpm.config.promotion import PromotionConfig
from ddpm.config.sampling import SamplingConfig
from ddpm.figures.figure import FIGURES, Reading, headline, number
from ddpm.figures.protocol import differing_fields, other_links

# Between models of one rank: the likelihood, and what an image costs. Lower is better.
_TIE_BREAKERS = ("nll_validation", "gflops_per_image")

# What a protocol says of the sampling plan, which is the model's own or one for all.
_PLAN_FIELDS = set(SamplingConfig.model_fields)
# Of a protocol, that only models with some column have.
_OF_COLUMNS = ("labels", "captions_sha256", "lows", "hints", "inpainted")


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
    ranking = headline(challenger.metrics)
    measure, ours = ranking.named(challenger.protocol), _reading(challenger, ranking.key)
    if not challenger.parity_passed:
        return Decision(False, "the exported model was not shown to be the trained one")
    if not math.isfinite(ours.value):
        return Decision(False, f"{measure} {ours.value} is no figure")
    if challenger.taken_back:
        return Decision(False, f"it was champion and was taken back: {challenger.taken_back}")
    if champion is None:
        return Decision(True, f"{measure} {ours}, and there was no champion to beat", _figures(challenger, None))
    theirs = Reading.of(champion.metrics, ranking.key)
    if differences := list(differing_fields(champion.protocol, challenger.protocol)):
        return Decision(
            False,
            f"not ranked: {measure} {ours} and {theirs or 'none'} of {champion.name} were measured under different "
            f"protocols: {'; '.join(differences)}",
            _figures(challenger, None),
        )
    if theirs is None:
        return Decision(False, f"not ranked: {champion.name} has no {measure} on record", _figures(challenger, None))
    promote, reason = _ranked(challenger, champion, policy.gain)
    if promote and (worse := list(_much_worse(challenger, champion, policy.tolerances.model_dump()))):
        promote, reason = False, f"{reason}; but {'; '.join(worse)}"
    return Decision(promote, reason, _figures(challenger, champion))


def _ranked(challenger: Candidate, champion: Candidate, gain: float) -> tuple[bool, str]:
    """Whether the challenger's headline, or where intervals overlap its tie-breakers, are better; and the numbers."""
    ranking = headline(challenger.metrics)
    measure = ranking.named(challenger.protocol)
    ours, theirs = _reading(challenger, ranking.key), _reading(champion, ranking.key)
    comparison = f"{ours} against {theirs} of {champion.name}"
    if ours.high < theirs.low:
        return True, f"lower {measure}: {comparison}"
    if ours.low > theirs.high:
        return False, f"no lower {measure}: {comparison}"
    changes = {
        FIGURES[key].short: (challenger.metrics[key], champion.metrics[key])
        for key in _TIE_BREAKERS
        if key in challenger.metrics and key in champion.metrics
    }
    lower = [name for name, (mine, other) in changes.items() if _clearly_lower(mine, other, gain)]
    higher = [name for name, (mine, other) in changes.items() if _clearly_lower(other, mine, gain)]
    numbers = "; ".join(f"{name} {number(mine)} against {number(other)}" for name, (mine, other) in changes.items())
    if lower and not higher:
        return True, f"lower {' and '.join(lower)} at the same {measure}: {comparison}; {numbers}"
    return False, f"no lower {measure}: {comparison}" + (f"; {numbers}" if numbers else "")


def _clearly_lower(one: float, other: float, gain: float) -> bool:
    return other - one > gain * max(abs(one), abs(other))


def _much_worse(challenger: Candidate, champion: Candidate, tolerances: Mapping[str, float | None]) -> Iterator[str]:
    """Each figure of the challenger that is worse than its tolerance allows."""
    for key, tolerance in tolerances.items():
        ours, theirs = (Reading.of(candidate.metrics, key) for candidate in (challenger, champion))
        if tolerance is None or ours is None or theirs is None:
            continue
        loss = ours.value - theirs.value if FIGURES[key].better == "lower" else theirs.value - ours.value
        # A share of a KID close to zero is less than its noise.
        if loss > tolerance * abs(theirs.value) + ours.noise + theirs.noise:
            name = FIGURES[key].named(challenger.protocol, short=True)
            numbers = f"{name} {number(ours.value)} against {number(theirs.value)}"
            yield f"{numbers} is worse by more than {100 * tolerance:g} %"


def _figures(challenger: Candidate, champion: Candidate | None) -> tuple[dict[str, str], ...]:
    """The numbers of a decision, a row a figure."""

    def shown(candidate: Candidate | None, key: str) -> str:
        return str((candidate and Reading.of(candidate.metrics, key)) or "")

    return tuple(
        {
            "figure": figure.named(challenger.protocol),
            "challenger": shown(challenger, key),
            "champion": shown(champion, key),
        }
        for key, figure in FIGURES.items()
        if key in challenger.metrics
    )


def _reading(candidate: Candidate, key: str) -> Reading:
    """A figure that the candidate is known to have."""
    reading = Reading.of(candidate.metrics, key)
    assert reading is not None
    return reading


def measuring_again_helps(champion: Mapping[str, Any], challenger: Mapping[str, Any], *, own_plan: bool) -> bool:
    """Whether the champion, measured once more, could come under the challenger's protocol.

    Args:
        champion: the protocol its figures have.
        challenger: the protocol they would have to have.
        own_plan: whether models are measured each by its own sampling plan; that does not change.
    """
    differing = {name for name in {*champion, *challenger} if champion.get(name) != challenger.get(name)}
    # Whether a model has classes, captions, a low image, a hint or a mask does not change.
    if any((champion.get(key) is None) != (challenger.get(key) is None) for key in _OF_COLUMNS):
        return False
    # The links of a cascade that do not lead always have their own plans.
    if differing & {"weights", *other_links(champion), *other_links(challenger)}:
        return False
    return bool(differing) and not (own_plan and differing & _PLAN_FIELDS)
