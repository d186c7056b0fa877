"""The promotion policy: what it must never do, for any figures and protocols."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddpm.promotion import Candidate, decide, headline

PROTOCOL = {"id": "0123456789ab", "extractor": "classifier", "extractor_sha256": "a" * 64, "samples": 2000}
fids = st.floats(0, 1e4)
protocols = st.dictionaries(st.sampled_from(["id", "extractor", "samples", "steps"]), st.integers(0, 2))


def candidate(fid: float, protocol: dict = PROTOCOL, *, name: str = "version 1", parity: bool = True) -> Candidate:
    return Candidate(name=name, score=fid, protocol=protocol, parity_passed=parity)


def test_the_first_version_is_promoted():
    decision = decide(candidate(12.5), None)
    assert decision.promote
    assert "12.5" in decision.reason
    assert "first" in decision.reason


@given(fids, fids)
def test_under_one_protocol_the_lower_fid_wins_and_the_reason_has_both_numbers(fid, champion_fid):
    decision = decide(candidate(fid), candidate(champion_fid, name="version 7"))
    assert decision.promote == (fid < champion_fid)
    assert f"{fid:.4f}" in decision.reason
    assert f"{champion_fid:.4f} of version 7" in decision.reason


@given(fids, fids, protocols, protocols)
def test_figures_of_different_protocols_are_never_ranked(fid, champion_fid, protocol, champion_protocol):
    decision = decide(candidate(fid, protocol), candidate(champion_fid, champion_protocol))
    if protocol != champion_protocol:
        assert not decision.promote
        assert "not ranked" in decision.reason
        changed = {k for k in {*protocol, *champion_protocol} if protocol.get(k) != champion_protocol.get(k)}
        assert all(f"{field}: " in decision.reason for field in changed - {"id"} or changed)


@given(fids, st.none() | fids)
def test_a_model_whose_export_was_not_shown_to_be_it_is_never_promoted(fid, champion_fid):
    champion = None if champion_fid is None else candidate(champion_fid)
    assert not decide(candidate(fid, parity=False), champion).promote


@given(st.sampled_from([math.nan, math.inf, -math.inf]), st.none() | fids)
def test_what_is_no_figure_is_never_promoted(fid, champion_fid):
    champion = None if champion_fid is None else candidate(champion_fid)
    assert not decide(candidate(fid), champion).promote


@given(fids, fids)
def test_two_models_never_dethrone_each_other(one, other):
    assert not (decide(candidate(one), candidate(other)).promote and decide(candidate(other), candidate(one)).promote)


def test_the_reason_names_the_field_and_both_its_values():
    decision = decide(candidate(1.0, {**PROTOCOL, "id": "x", "samples": 500}), candidate(2.0))
    assert "samples: 2000 → 500" in decision.reason
    assert "id" not in decision.reason.split("protocols: ")[1]


def test_the_reason_stays_short_where_hashes_differ():
    decision = decide(candidate(1.0, {**PROTOCOL, "extractor_sha256": "b" * 64}), candidate(2.0))
    assert "extractor_sha256: aaaaaaaaaaaa… → bbbbbbbbbbbb…" in decision.reason


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ({"fid": 1.0, "inception_score": 9.0}, ("fid", "FID")),
        ({"wasserstein": 0.1, "mmd": 0.0}, ("wasserstein", "Wasserstein distance")),
    ],
)
def test_models_are_ranked_by_what_their_data_are_measured_by(metrics, expected):
    assert headline(metrics) == expected


def test_a_reason_names_the_measure():
    challenger = replace(candidate(0.5), measure="Wasserstein distance")
    assert decide(challenger, None).reason.startswith("Wasserstein distance 0.5000")
