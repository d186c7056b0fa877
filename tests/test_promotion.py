"""The promotion policy: what it must never do, for any figures and protocols."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddpm.config.promotion import PromotionConfig, Tolerances
from ddpm.figures.figure import FIGURES, headline, number
from ddpm.figures.promotion import Candidate, decide, measuring_again_helps

PROTOCOL = {"id": "0123456789ab", "extractor": "classifier", "extractor_sha256": "a" * 64, "samples": 2000}
POLICY = PromotionConfig()
fids = st.floats(0, 1e4)
protocols = st.dictionaries(st.sampled_from(["id", "extractor", "samples", "steps"]), st.integers(0, 2))
# Few values, so that equal ones and overlaps are frequent.
values = st.sampled_from([-2.0, 0.0, 0.5, 0.505, 1.0, 1.2, 2.0, 5.0])
metrics = st.builds(
    lambda fid, other: {"fid": fid, **other},
    values,
    st.dictionaries(st.sampled_from(["fid_low", "fid_high", "nll_validation", "gflops_per_image", "recall"]), values),
)
policies = st.builds(
    lambda gain, recall: PromotionConfig(gain=gain, tolerances=Tolerances(recall=recall)),
    st.sampled_from([0.0, 0.01, 0.5]),
    st.sampled_from([None, 0.0, 0.1]),
)


def candidate(fid: float, protocol: dict = PROTOCOL, *, name: str = "version 1", **more: float) -> Candidate:
    return Candidate(name=name, metrics={"fid": fid, **more}, protocol=protocol, parity_passed=True)


def around(fid: float, width: float = 1.0, **more: float) -> Candidate:
    """With an interval."""
    return candidate(fid, fid_low=fid - width, fid_high=fid + width, **more)


def test_the_first_version_is_promoted():
    decision = decide(candidate(12.5), None, POLICY)
    assert decision.promote
    assert "12.5" in decision.reason
    assert "there was no champion to beat" in decision.reason


@given(fids, fids)
def test_of_figures_without_intervals_the_lower_fid_wins_and_the_reason_has_both_numbers(fid, champion_fid):
    decision = decide(candidate(fid), candidate(champion_fid, name="version 7"), POLICY)
    assert decision.promote == (fid < champion_fid)
    assert f" {number(fid)} against {number(champion_fid)} of version 7" in decision.reason


@pytest.mark.parametrize(
    ("challenger", "champion", "promoted", "words"),
    [
        (around(10), around(13), True, "lower FID (small CNN): 10 [9, 11] against 13 [12, 14]"),
        (around(13), around(10), False, "no lower FID (small CNN): 13 [12, 14] against 10"),
        (around(10), around(11), False, "no lower FID (small CNN): 10 [9, 11] against 11"),
        # Within the overlap the likelihood and the cost decide, unless one is lower and the other higher.
        (around(10.4, nll_validation=3.0), around(10, nll_validation=3.2), True, "lower NLL at the same FID"),
        (around(10, nll_validation=3.2), around(11, nll_validation=3.0), False, "NLL 3.2 against 3"),
        (around(10, nll_validation=3.19), around(11, nll_validation=3.2), False, "no lower FID"),
        (around(10.4, gflops_per_image=5.0), around(10, gflops_per_image=9.0), True, "lower GFLOP an image"),
        (
            around(11, gflops_per_image=5.0, nll_validation=3.2),
            around(10, gflops_per_image=9.0, nll_validation=3.0),
            False,
            "NLL 3.2 against 3; GFLOP an image 5 against 9",
        ),
        # Overlapping intervals alone are not the same quality.
        (
            around(11, nll_validation=3.0),
            around(10, nll_validation=3.2),
            False,
            "but FID (small CNN) 11 against 10 is worse by more",
        ),
        # A lower FID does not pay for the diversity that is gone.
        (candidate(5, recall=0.4), candidate(9, recall=0.5), False, "but recall (small CNN) 0.4 against 0.5"),
        (candidate(5, recall=0.46), candidate(9, recall=0.5), True, "lower FID"),
        (candidate(5, kid=0.03), candidate(9, kid=0.02), False, "0.03 against 0.02 is worse by more than 25 %"),
        # Nor for samples that are not of the class that was asked.
        (
            candidate(5, class_accuracy=0.8),
            candidate(9, class_accuracy=0.95),
            False,
            "but class accuracy (small CNN) 0.8 against 0.95 is worse by more than 5 %",
        ),
        (
            candidate(5, fid_within_classes=50),
            candidate(9, fid_within_classes=40),
            False,
            "but FID within classes (small CNN) 50 against 40",
        ),
        (candidate(5, class_accuracy=0.93), candidate(9, class_accuracy=0.95), True, "lower FID"),
        # Close to zero, a share of it is less than its noise.
        (around(5, kid=4e-4, kid_std=1e-3), around(9, kid=3e-4, kid_std=1e-3), True, "lower FID"),
        (around(5, kid=4e-3, kid_std=1e-3), around(9, kid=3e-4, kid_std=1e-3), False, "but KID (small CNN) 0.004"),
        # An older version lacks the figure.
        (candidate(5, recall=0.1), candidate(9), True, "lower FID"),
    ],
)
def test_what_makes_a_champion(challenger, champion, promoted, words):
    decision = decide(challenger, champion, POLICY)
    assert decision.promote == promoted
    assert words in decision.reason


@given(metrics, metrics, policies)
def test_of_two_models_at_most_one_is_better(one, other, policy):
    first, second = (Candidate("a version", each, PROTOCOL, True) for each in (one, other))
    assert not (decide(first, second, policy).promote and decide(second, first, policy).promote)


@given(metrics, policies)
def test_a_model_is_not_better_than_itself(figures, policy):
    itself = Candidate("version 1", figures, PROTOCOL, True)
    assert not decide(itself, itself, policy).promote


@given(metrics, metrics, st.sampled_from([0.0, 0.1, 0.5]))
def test_no_champion_ever_loses_more_than_its_tolerance(one, other, tolerance):
    policy = PromotionConfig(tolerances=Tolerances(recall=tolerance))
    if decide(Candidate("b", one, PROTOCOL, True), Candidate("a", other, PROTOCOL, True), policy).promote:
        before, after = other.get("recall"), one.get("recall")
        assert before is None or after is None or before - after <= tolerance * abs(before)


@given(fids, fids, protocols, protocols)
def test_figures_of_different_protocols_are_never_ranked(fid, champion_fid, protocol, champion_protocol):
    decision = decide(candidate(fid, protocol), candidate(champion_fid, champion_protocol), POLICY)
    if protocol != champion_protocol:
        assert not decision.promote
        assert "not ranked" in decision.reason
        changed = {k for k in {*protocol, *champion_protocol} if protocol.get(k) != champion_protocol.get(k)}
        assert all(f"{field}: " in decision.reason for field in changed - {"id"} or changed)


@given(metrics, st.none() | metrics, policies, st.sampled_from([{"parity_passed": False}, {"taken_back": "blurry"}]))
def test_a_model_that_is_unsound_or_was_taken_back_is_never_promoted(figures, champion, policy, flaw):
    champion = None if champion is None else Candidate("version 1", champion, PROTOCOL, True)
    challenger = replace(Candidate("version 2", figures, PROTOCOL, True), **flaw)
    assert not decide(challenger, champion, policy).promote


@given(st.sampled_from([math.nan, math.inf, -math.inf]), st.none() | fids)
def test_what_is_no_figure_is_never_promoted(fid, champion_fid):
    champion = None if champion_fid is None else candidate(champion_fid)
    assert not decide(candidate(fid), champion, POLICY).promote


def test_the_reason_names_the_field_and_both_its_values():
    decision = decide(candidate(1.0, {**PROTOCOL, "id": "x", "samples": 500}), candidate(2.0), POLICY)
    assert "samples: 2000 → 500" in decision.reason
    assert "id" not in decision.reason.split("protocols: ")[1]


def test_the_reason_stays_short_where_hashes_differ():
    decision = decide(candidate(1.0, {**PROTOCOL, "extractor_sha256": "b" * 64}), candidate(2.0), POLICY)
    assert "extractor_sha256: aaaaaaaaaaaa… → bbbbbbbbbbbb…" in decision.reason


@pytest.mark.parametrize(
    ("changed", "own_plan", "helps"),
    [
        ({}, True, False),
        ({"id": "x", "samples": 500, "train_sha256": "c" * 64}, True, True),
        ({"id": "x", "samples": 500, "sampler": "ancestral"}, True, False),
        ({"id": "x", "samples": 500, "sampler": "ancestral"}, False, True),
        ({"id": "x", "weights": "imported"}, False, False),
        ({"id": "x", "upsampler": {"steps": 5}}, False, False),
        ({"id": "x", "judge": "clip 0123456789ab", "judge_candidates": 100}, True, True),
        ({"id": "x", "hints": "validation, edges"}, True, False),
    ],
)
def test_measuring_the_champion_again_helps_unless_what_differs_is_its_own(changed, own_plan, helps):
    assert measuring_again_helps(PROTOCOL, {**PROTOCOL, **changed}, own_plan=own_plan) == helps


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ({"fid": 1.0, "inception_score": 9.0}, "fid"),
        ({"wasserstein": 0.1, "mmd": 0.0}, "wasserstein"),
    ],
)
def test_models_are_ranked_by_what_their_data_are_measured_by(metrics, expected):
    assert headline(metrics) == FIGURES[expected]


def test_a_reason_names_the_measure():
    challenger = replace(candidate(0.5), metrics={"wasserstein": 0.5})
    assert decide(challenger, None, POLICY).reason.startswith("Wasserstein distance 0.5,")
