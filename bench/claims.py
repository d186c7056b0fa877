"""The papers' claims as inequalities between measured figures, and whether they hold beyond the figures' noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

Outcome = Literal["yes", "no", "within the noise"]

FEW_STEPS = 50  # "few" in the claims about samplers is at most so many
COLLAPSE = 2.0  # times the posterior's FID: what is called a collapse
NEAR = 1.25  # times L_simple's FID: what is still called near


@dataclass(frozen=True)
class Estimate:
    """A figure of N images, and what it is without each of G groups of them (the delete-a-group jackknife).

    Figures whose groups are the same images, or come of the same noise, are compared pair by pair: what the group
    does to both cancels.
    """

    value: float
    left_out: NDArray[np.float64]  # [G]

    @property
    def error(self) -> float:
        """The standard error."""
        return jackknife_error(self.left_out)

    def as_dict(self) -> dict[str, float]:
        """As JSON has it."""
        return {"value": round(self.value, 4), "error": round(self.error, 4)}


def jackknife_error(left_out: NDArray[np.float64]) -> float:
    """The standard error of a figure from its values without each of G groups, [G] (Efron & Stein 1981)."""
    groups = len(left_out)
    return float(np.sqrt((groups - 1) * np.var(left_out)))


def estimate(figure: Callable[[NDArray[np.int64]], float], count: int, groups: int) -> Estimate:
    """A figure of `count` images, as a function of which of them are taken, with its jackknife."""
    positions = np.arange(count)
    left_out = [figure(positions[positions % groups != group]) for group in range(groups)]
    return Estimate(figure(positions), np.array(left_out))


@dataclass(frozen=True)
class Comparison:
    """Whether a figure is below another: by how much, and how sure that is."""

    statement: str
    margin: float  # positive where the statement is true
    error: float  # of the margin
    outcome: Outcome

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "statement": self.statement,
            "outcome": self.outcome,
            "margin": round(self.margin, 4),
            "error": round(self.error, 4),
        }


def below(statement: str, a: Estimate, b: Estimate, factor: float = 1.0) -> Comparison:
    """Compare a < factor · b; it is said to be so, or not, where 0 is outside the margin's 95 % interval."""
    margin = factor * b.value - a.value
    error = jackknife_error(factor * b.left_out - a.left_out)
    bound = error * float(student.ppf(0.975, len(a.left_out) - 1))
    outcome: Outcome = "within the noise" if abs(margin) <= bound else "yes" if margin > 0 else "no"
    return Comparison(statement, margin, error, outcome)


@dataclass(frozen=True)
class Claim:
    """A claim and the comparisons that it comes to."""

    text: str
    comparisons: tuple[Comparison, ...]

    @property
    def verdict(self) -> str:
        """What the outcomes of the comparisons amount to."""
        if not self.comparisons:
            return "not compared"
        words = {"yes": "holds", "no": "does not hold", "within the noise": "undecided"}
        outcomes = [comparison.outcome for comparison in self.comparisons]
        counts = [(word, outcomes.count(outcome)) for outcome, word in words.items() if outcome in outcomes]
        if len(counts) == 1:
            return counts[0][0]
        return ", ".join(f"{word} in {count}" for word, count in counts) + f" (of {len(outcomes)} comparisons)"

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        comparisons = [comparison.as_dict() for comparison in self.comparisons]
        return {"claim": self.text, "verdict": self.verdict, "comparisons": comparisons}


# --- what is claimed (Song et al. 2021, table 1; Nichol & Dhariwal 2021, tables 1 and 2, figures 8 and 10)

Sampled = Mapping[tuple[str, str, int], Estimate]  # by spacing, sampler and number of steps S
Trained = Mapping[tuple[str, str, int], Estimate]  # by loss, schedule and S
Pairs = list[tuple[tuple[str, str], tuple[str, str]]]  # (loss, schedule) of either side of an inequality


def sampler_claims(fid: Sampled) -> list[Claim]:
    """Of DDIM, and of σ̂, which is ancestral sampling with σ² = β (`ancestral-large`; `ancestral-small` is σ² = β̃)."""
    spacings = dict.fromkeys(spacing for spacing, _, _ in fid)
    few = sorted({steps for _, _, steps in fid if steps <= FEW_STEPS})

    def compare(spacing: str, a: str, b: str, factor: float = 1.0) -> tuple[Comparison, ...]:
        return tuple(
            below(_statement("FID", s, a, b, factor), fid[spacing, a, s], fid[spacing, b, s], factor) for s in few
        )

    claims = []
    for spacing in spacings:
        where = f"at few steps ({spacing})"
        claims += [
            Claim(f"DDIM beats ancestral sampling {where}", compare(spacing, "ddim-0", "ancestral-small")),
            Claim(f"σ̂ collapses {where}", compare(spacing, "ancestral-small", "ancestral-large", 1 / COLLAPSE)),
        ]
    return claims


def better_fixed_variance(bits: Mapping[tuple[str, str, str, int], Estimate]) -> Trained:
    """Bits/dim by loss, schedule and S: where a model was measured with two fixed variances, the lower."""
    best: dict[tuple[str, str, int], Estimate] = {}
    for (loss, schedule, _, steps), figure in bits.items():
        key = (loss, schedule, steps)
        best[key] = min(best.get(key, figure), figure, key=lambda each: each.value)
    return best


def model_claims(fid: Trained, bits: Trained) -> list[Claim]:
    """Of the variance, the schedule and the objective.

    Args:
        fid: at few S.
        bits: bits/dim, at few S and at T.
    """
    losses = dict.fromkeys(loss for loss, _, _ in bits)
    schedules = dict.fromkeys(schedule for _, schedule, _ in bits)
    whole, few = max(steps for *_, steps in bits), sorted({steps for *_, steps in fid})

    def compare(pairs: Pairs, figures: Trained, steps: Sequence[int], factor: float = 1.0) -> tuple[Comparison, ...]:
        name = "FID" if figures is fid else "bits/dim"
        return tuple(
            below(_statement(name, s, "-".join(a), "-".join(b), factor), figures[*a, s], figures[*b, s], factor)
            for s in steps
            for a, b in pairs
        )

    def of_losses(a: str, b: str) -> Pairs:
        return [((a, schedule), (b, schedule)) for schedule in schedules]

    claims = []
    # L_hybrid is L_simple with a learned Σ.
    cosine = [((loss, "cosine"), (loss, "linear")) for loss in losses]
    for what, pairs in (("A learned Σ", of_losses("hybrid", "simple")), ("The cosine schedule", cosine)):
        claims += [
            Claim(f"{what} lowers NLL", compare(pairs, bits, [whole])),
            Claim(f"{what} lowers the few-step NLL", compare(pairs, bits, few)),
            Claim(f"{what} lowers the few-step FID", compare(pairs, fid, few)),
        ]
    return [
        *claims,
        Claim("L_hybrid keeps FID near L_simple's", compare(of_losses("hybrid", "simple"), fid, few, NEAR)),
        Claim("L_vlb costs FID", compare(of_losses("hybrid", "vlb"), fid, few)),
        Claim(
            "L_vlb gives the best NLL",
            compare([*of_losses("vlb", "simple"), *of_losses("vlb", "hybrid")], bits, [whole]),
        ),
    ]


def _statement(name: str, steps: int, a: str, b: str, factor: float) -> str:
    return f"{name} at S = {steps}: {a} < {'' if factor == 1 else f'{factor:g} × '}{b}"
