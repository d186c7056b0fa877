"""What the ablation's verdicts make of figures, with figures made up."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from bench.claims import (
    Claim,
    Comparison,
    Estimate,
    below,
    better_fixed_variance,
    estimate,
    model_claims,
    sampler_claims,
)

GROUPS = 10


def figure(value: float, noise: float = 0.0, seed: int = 0) -> Estimate:
    """A figure whose standard error is about `noise`; figures of one seed share their noise."""
    wobble = np.random.default_rng(seed).standard_normal(GROUPS)
    wobble = (wobble - wobble.mean()) / wobble.std()
    return Estimate(value, value + noise * wobble / np.sqrt(GROUPS - 1))


def verdicts(claims: list[Claim]) -> dict[str, str]:
    return {claim.text: claim.verdict for claim in claims}


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(0).standard_normal(1000)
    mean = estimate(lambda kept: float(values[kept].mean()), 1000, 1000)
    assert mean.value == pytest.approx(values.mean())
    assert mean.error == pytest.approx(values.std(ddof=1) / np.sqrt(1000), rel=1e-6)
    assert estimate(lambda kept: float(values[kept].mean()), 1000, 20).error == pytest.approx(mean.error, rel=0.5)


def test_a_difference_counts_beyond_its_noise_alone():
    low, high = figure(10, noise=1, seed=1), figure(11, noise=1, seed=2)
    assert below("", low, high).outcome == "within the noise"
    assert below("", figure(10, noise=0.1, seed=1), figure(11, noise=0.1, seed=2)).outcome == "yes"
    assert below("", figure(11, noise=0.1, seed=1), figure(10, noise=0.1, seed=2)).outcome == "no"


def test_noise_that_two_figures_share_cancels():
    comparison = below("", figure(10, noise=5), figure(10.5, noise=5))
    assert comparison.outcome == "yes"
    assert comparison.margin == pytest.approx(0.5)
    assert comparison.error == pytest.approx(0, abs=1e-9)


def test_a_factor_scales_the_right_side():
    assert below("", figure(12), figure(10), 1.25).outcome == "yes"
    assert below("", figure(13), figure(10), 1.25).outcome == "no"


@pytest.mark.parametrize(
    ("outcomes", "verdict"),
    [
        (["yes", "yes"], "holds"),
        (["no", "no"], "does not hold"),
        (["within the noise"], "undecided"),
        (["yes", "no", "yes"], "holds in 2, does not hold in 1 (of 3 comparisons)"),
        (["no", "within the noise"], "does not hold in 1, undecided in 1 (of 2 comparisons)"),
    ],
)
def test_a_verdict_says_how_many_comparisons_bear_it_out(outcomes, verdict):
    assert Claim("", tuple(Comparison("", 0.0, 0.0, outcome) for outcome in outcomes)).verdict == verdict


# DDIM's table 1, CIFAR-10.
PAPER = {
    "ddim-0": {10: 13.36, 20: 6.84, 50: 4.67, 100: 4.16, 1000: 4.04},
    "ancestral-small": {10: 41.07, 20: 18.36, 50: 8.01, 100: 5.78, 1000: 4.73},
    "ancestral-large": {10: 367.43, 20: 133.37, 50: 32.72, 100: 9.99, 1000: 3.17},
}


def of_samplers(change: Callable[[float], float] = lambda fid: fid) -> list[Claim]:
    """Claims from the paper's figures, or from what a function makes of them."""
    return sampler_claims(
        {("leading", name, steps): figure(change(fid)) for name, row in PAPER.items() for steps, fid in row.items()}
    )


def test_the_papers_own_figures_bear_out_what_is_claimed_of_samplers():
    claims = of_samplers()
    assert verdicts(claims) == {
        "DDIM beats ancestral sampling at few steps (leading)": "holds",
        "σ̂ collapses at few steps (leading)": "holds",
    }
    assert {comparison.statement.split(":")[0] for claim in claims for comparison in claim.comparisons} == {
        f"FID at S = {steps}" for steps in (10, 20, 50)
    }


def test_figures_the_other_way_round_bear_out_nothing():
    assert set(verdicts(of_samplers(lambda fid: 1000 - fid)).values()) == {"does not hold"}


def measured(bits: dict[str, float], fid: dict[str, float], cosine: float) -> list[Claim]:
    """Claims from figures by loss at S = 1000, 20 % more of either at S = 50, and `cosine` times them under cosine."""
    models = list(itertools.product(bits, (("linear", 1.0), ("cosine", cosine))))
    return model_claims(
        {(loss, name, 50): figure(fid[loss] * share) for loss, (name, share) in models},
        {
            (loss, name, steps): figure(bits[loss] * share * more)
            for loss, (name, share) in models
            for steps, more in ((50, 1.2), (1000, 1.0))
        },
    )


def test_the_papers_order_of_objectives_and_schedules_bears_out_every_claim():
    claims = measured({"simple": 3.37, "hybrid": 3.26, "vlb": 3.1}, {"simple": 3, "hybrid": 2.9, "vlb": 11}, 0.97)
    assert set(verdicts(claims).values()) == {"holds"}
    assert len(claims) == 9


def test_each_claim_is_about_its_own_figures():
    claims = verdicts(
        measured({"simple": 3.3, "hybrid": 3.2, "vlb": 3.25}, {"simple": 3, "hybrid": 3.5, "vlb": 3.2}, 1.1)
    )
    assert claims == {
        "A learned Σ lowers NLL": "holds",
        "A learned Σ lowers the few-step NLL": "holds",
        "A learned Σ lowers the few-step FID": "does not hold",
        "The cosine schedule lowers NLL": "does not hold",
        "The cosine schedule lowers the few-step NLL": "does not hold",
        "The cosine schedule lowers the few-step FID": "does not hold",
        "L_hybrid keeps FID near L_simple's": "holds",
        "L_vlb costs FID": "does not hold",
        "L_vlb gives the best NLL": "holds in 2, does not hold in 2 (of 4 comparisons)",
    }


def test_the_better_of_two_fixed_variances_stands_for_a_model():
    large, small, learned = figure(5), figure(4), figure(3)
    bits = {
        ("simple", "linear", "fixed_large", 50): large,
        ("simple", "linear", "fixed_small", 50): small,
        ("simple", "linear", "fixed_large", 1000): small,
        ("simple", "linear", "fixed_small", 1000): large,
        ("vlb", "linear", "learned_range", 50): learned,
    }
    assert better_fixed_variance(bits) == {
        ("simple", "linear", 50): small,
        ("simple", "linear", 1000): small,
        ("vlb", "linear", 50): learned,
    }
