"""Whether drawn images follow their hints: figures of the two."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from ddpm.codecs.scale import PixelCodec
from ddpm.conditioning.hints import ColourColumn, EdgesColumn, SilhouetteColumn, control_columns
from ddpm.config.evaluation import EvaluationConfig
from ddpm.evaluation.agreement import Agreement, colour_error, edge_f1, intersection_over_union
from ddpm.evaluation.measure import _asked

pytest.importorskip("skimage")

EDGES = arrays(np.bool_, (2, 7, 7))


def line(row: int) -> np.ndarray:
    edges = np.zeros((1, 8, 8), bool)
    edges[0, row] = True
    return edges


@settings(deadline=None)
@given(EDGES, EDGES)
def test_f1_is_a_share_that_does_not_depend_on_the_order(a, b):
    assert ((edge_f1(a, b) >= 0) & (edge_f1(a, b) <= 1)).all()
    assert np.allclose(edge_f1(a, b), edge_f1(b, a))
    assert np.allclose(edge_f1(a, a), 1)


@pytest.mark.parametrize(("away", "expected"), [(0, 1.0), (1, 1.0), (2, 0.0)])
def test_an_edge_may_lie_a_pixel_beside_the_one_asked_for(away, expected):
    assert edge_f1(line(3 + away), line(3)) == expected


def test_f1_is_the_harmonic_mean_of_precision_and_recall():
    """Both lines are found where one is asked for: precision 1/2, recall 1."""
    assert edge_f1(line(1) | line(6), line(1)) == pytest.approx(2 / 3)
    assert edge_f1(line(1), line(1) | line(6)) == pytest.approx(2 / 3)
    none = np.zeros((1, 8, 8), bool)
    assert edge_f1(none, line(1)) == 0
    assert edge_f1(none, none) == 1


def test_silhouettes_and_colours():
    a, b = line(1) | line(2), line(2) | line(3)
    assert intersection_over_union(a, b) == pytest.approx(1 / 3)
    assert intersection_over_union(a & b & False, b & False) == 1
    black = np.zeros((1, 4, 4, 3), np.uint8)
    assert colour_error(black + np.uint8(10), black) == pytest.approx(10)


@pytest.mark.parametrize(
    ("column", "perfect"),
    [(EdgesColumn((8, 8, 3)), 1.0), (SilhouetteColumn((8, 8, 3)), 1.0), (ColourColumn((8, 8, 3), side=4), 0.0)],
)
def test_images_agree_with_their_own_hints_and_less_with_those_of_others(column, perfect):
    """In batches of any size."""
    codec, random = PixelCodec((8, 8, 3)), np.random.default_rng(0)
    images = np.full((6, 8, 8, 3), 255, np.uint8)
    for image in images:
        top, left = random.integers(0, 4, 2)
        image[top + 1 : top + 4, left + 1 : left + 4] = random.integers(0, 150, 3)
    import torch

    hints = column.derive(codec.encode(torch.from_numpy(images)), torch.empty(6, 0)).numpy()
    whole, parts = (Agreement(column, codec, hints) for _ in range(2))
    whole.add(images)
    for first in range(0, 6, 4):
        parts.add(images[first : first + 4])
    figures, key = whole.figures(), f"control_{column.kind}"
    assert figures == parts.figures()
    assert figures[key] == pytest.approx(perfect)
    worse = figures[f"{key}_chance"] - perfect
    assert worse < -0.05 if perfect else worse > 1
    assert figures[f"{key}_low"] <= figures[key] <= figures[f"{key}_high"]


def test_the_protocol_names_the_hints_of_all_controls():
    manifest = SimpleNamespace(counts=SimpleNamespace(validation=3))
    hints = [
        _asked(EvaluationConfig(), control_columns({"hint": "edges", **more}, {"shape": [8, 8, 3]}), manifest, Path())[
            "hints"
        ]
        for more in ({}, {"also": [{"hint": "colour", "side": 4}]})
    ]
    assert hints == ["validation, edges at sigma 1", "validation, edges at sigma 1, colour at 4×4"]
