import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm.evaluation.distances import chosen, median_distance, mmd, wasserstein


def normal(count: int, *, seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1, (count, 2))


def test_wasserstein_in_one_dimension_is_that_of_the_sorted_values():
    a, b = normal(50, seed=0)[:, :1], normal(50, seed=1, shift=2)[:, :1]
    assert wasserstein(a, b) == pytest.approx(np.abs(np.sort(a, 0) - np.sort(b, 0)).mean())


@given(shift=st.floats(-5, 5))
@settings(max_examples=20, deadline=None)
def test_wasserstein_of_a_shifted_set_is_the_shift(shift):
    a = normal(30, seed=0)
    assert wasserstein(a, a + np.array([shift, 0])) == pytest.approx(abs(shift), abs=1e-9)


def test_mmd_is_that_of_two_normal_distributions():
    """E k(x, y) of N(μ, I) and N(ν, I) in two dimensions is s²/(s²+2) exp(−|μ−ν|²/(2(s²+2)))."""
    bandwidth, shift = 1.5, 1.0
    spread = bandwidth**2 + 2
    expected = 2 * bandwidth**2 / spread * (1 - np.exp(-(2 * shift**2) / (2 * spread)))
    found = mmd(normal(1500, seed=0), normal(1500, seed=1, shift=shift), bandwidth)
    assert found == pytest.approx(expected, rel=0.1)
    assert abs(mmd(normal(1500, seed=0), normal(1500, seed=1), bandwidth)) < 0.02 * expected


def test_the_bandwidth_of_equal_points_is_one():
    assert median_distance(np.zeros((5, 2))) == 1
    assert median_distance(np.array([[0.0], [3.0]])) == 3


@given(count=st.integers(1, 50), limit=st.integers(1, 60))
@settings(deadline=None)
def test_rows_are_chosen_once(count, limit):
    rows = chosen(count, limit, seed=1)
    assert len(set(rows.tolist())) == len(rows) == min(count, limit)
    assert rows.max() < count
