"""Embeddings as data: their scale, their length, and the arc between two."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm.codecs.embedding import Embedding
from ddpm.directions import slerp, unit
from ddpm.errors import NotFiniteError


def directions(count: int, numbers: int = 6, seed: int = 0) -> np.ndarray:
    return unit(np.random.default_rng(seed).standard_normal((count, numbers)))


def test_the_network_sees_about_unit_variance():
    found = Embedding.of_unit_norm(64).encode(torch.from_numpy(directions(500, 64)))
    assert found.dtype == torch.float32
    assert abs(found.std().item() - 1) < 0.01


def test_embeddings_come_back():
    codec, stored = Embedding.of_unit_norm(6), directions(5)
    np.testing.assert_allclose(codec.decode(codec.encode(torch.from_numpy(stored)).numpy()), stored, atol=1e-6)


def test_decoded_embeddings_have_length_1():
    found = Embedding.of_unit_norm(6).decode(np.random.default_rng(0).standard_normal((4, 6), dtype=np.float32))
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_others_keep_their_length():
    codec = Embedding((1.0, 2.0), (0.5, 4.0), unit_norm=False)
    np.testing.assert_allclose(codec.decode(np.float32([[2.0, -1.0]])), [[2.0, -2.0]])
    assert not codec.bounded


def test_what_is_not_finite_is_refused():
    with pytest.raises(NotFiniteError, match="1 of 2"):
        Embedding.of_unit_norm(2).decode(np.float32([[np.nan, 1], [1, 1]]))


@given(st.integers(0, 1000), st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_the_arc_is_even(seed, share):
    start, end = directions(2, seed=seed).astype(np.float64)
    whole = np.arccos(np.clip(start @ end, -1, 1))
    (found,) = slerp(start, end, np.array([share]))
    assert abs(np.arccos(np.clip(start @ found, -1, 1)) - share * whole) < 2e-3
    assert abs(np.linalg.norm(found) - 1) < 1e-6


def test_the_arc_begins_and_ends_where_it_should():
    start, end = directions(2)
    np.testing.assert_allclose(slerp(start, 3 * end, np.array([0.0, 1.0])), [start, end], atol=1e-6)


def test_an_arc_to_itself():
    start = directions(1)[0]
    np.testing.assert_allclose(slerp(start, start, np.array([0.5])), [start], atol=1e-6)


@pytest.mark.parametrize("end", [-directions(1)[0], np.zeros(6)])
def test_there_is_no_arc(end):
    with pytest.raises(ValueError, match="no one arc"):
        slerp(directions(1)[0], end, np.array([0.5]))
