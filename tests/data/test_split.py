"""The split keeps every class's share, and depends on nothing but its arguments."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddpm.data.split import grouped_split, stratified_split

LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(lambda some: np.array(some + some, np.int64))
FRACTIONS = st.floats(0.01, 0.99)
SEEDS = st.integers(0, 2**32 - 1)


@given(LABELS, FRACTIONS, SEEDS)
def test_disjoint_complete_and_stratified(labels: np.ndarray, fraction: float, seed: int) -> None:
    train, validation = stratified_split(labels, len(labels), fraction, seed)
    assert train.dtype == validation.dtype == np.int64
    assert (np.diff(train) > 0).all()
    assert (np.diff(validation) > 0).all()
    assert sorted([*train, *validation]) == list(range(len(labels)))
    for label in np.unique(labels):
        total, kept = (labels == label).sum(), (labels[validation] == label).sum()
        assert 1 <= kept < total
        rounded = 1 <= total * fraction <= total - 1
        assert abs(kept - total * fraction) <= (0.5 if rounded else 1)


@given(st.integers(2, 200), FRACTIONS, SEEDS)
def test_without_labels_all_are_one_class(n: int, fraction: float, seed: int) -> None:
    one_class = stratified_split(np.zeros(n, np.int64), n, fraction, seed)
    for part, same in zip(stratified_split(None, n, fraction, seed), one_class, strict=True):
        assert (part == same).all()


@given(LABELS, FRACTIONS, SEEDS, SEEDS)
def test_depends_on_nothing_else(labels: np.ndarray, fraction: float, seed: int, noise: int) -> None:
    first = stratified_split(labels, len(labels), fraction, seed)
    np.random.seed(noise)
    second = stratified_split(labels, len(labels), fraction, seed)
    assert (first[1] == second[1]).all()


def test_another_seed_is_another_split() -> None:
    assert (stratified_split(None, 1000, 0.5, 0)[1][:50] != stratified_split(None, 1000, 0.5, 1)[1][:50]).any()


def test_the_stream_is_pinned() -> None:
    """What a published validation hash rests on: this must never change."""
    assert stratified_split(np.array([0, 1] * 5), 10, 0.4, 0)[1].tolist() == [0, 1, 4, 5]


def test_a_class_of_one_cannot_be_split() -> None:
    with pytest.raises(ValueError, match="two"):
        stratified_split(np.array([0, 0, 1]), 3, 0.5, 0)


GROUPS = st.lists(st.tuples(st.sampled_from("abcdefgh"), st.booleans()), min_size=2, max_size=80).filter(
    lambda some: len({group for group, _ in some}) > 1
)


@given(GROUPS, FRACTIONS, SEEDS)
def test_groups_stay_together_but_for_the_combinations_held_out(data: list, fraction: float, seed: int) -> None:
    groups, combination = (list(each) for each in zip(*data, strict=True))
    train, validation, held_out = grouped_split(groups, combination, fraction, seed)
    assert sorted([*train, *validation]) == list(range(len(data)))
    assert len(train)
    assert set(held_out) <= set(validation)
    whole = {groups[row] for row in set(validation) - set(held_out)}
    assert not whole & {groups[row] for row in train}
    share = min(max(np.floor(len(set(groups)) * fraction + 0.5), 1), len(set(groups)) - 1)
    assert len(whole) == share
    for row in held_out:
        assert combination[row]
        others = [combination[other] for other in train if groups[other] == groups[row]]
        assert others.count(True) >= 2
    assert len({groups[row] for row in held_out}) == len(held_out)


def test_combinations_are_held_out_by_the_seed() -> None:
    groups = [name for name in "abcdefghijklmnopqrst" for _ in range(6)]
    combination = [False, True, True, True, True, True] * 20
    found = [grouped_split(groups, combination, 0.25, seed) for seed in (0, 0, 1)]
    for one, same in zip(found[0], found[1], strict=True):
        assert (one == same).all()
    assert [len(held_out) for *_, held_out in found] == [4, 4, 4]  # a quarter of the 15 groups that are left
    assert not np.array_equal(found[0][2], found[2][2])
    assert not {0} & {row % 6 for *_, held_out in found for row in held_out}


def test_one_group_cannot_be_split() -> None:
    with pytest.raises(ValueError, match="one group"):
        grouped_split(["a", "a"], [False, True], 0.5, 0)
