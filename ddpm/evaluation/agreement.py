"""Whether drawn images follow the hint that they were asked to follow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation

from ddpm.codecs.scale import Codec
from ddpm.conditioning.columns import Column
from ddpm.conditioning.hints import DerivedHint, HintColumn
from ddpm.evaluation.bootstrap import NORMAL_95

TOLERANCE = 1  # pixels, in each direction, by which an edge may lie beside the one asked for

Bools = NDArray[np.bool_]
Scores = NDArray[np.float64]


def edge_f1(found: Bools, asked: Bools) -> Scores:
    """F1 of edges [N, H, W] with a tolerance of a pixel, [N], in 0..1: of the share of the edges found that lie at one
    asked for, and of those asked for that lie at one found. 1 where there are none of either.
    """
    precision, recall = _share(found, _wider(asked)), _share(asked, _wider(found))
    return 2 * precision * recall / np.maximum(precision + recall, 1e-12)


def _wider(edges: Bools) -> Bools:
    size = 2 * TOLERANCE + 1
    return binary_dilation(edges, np.ones((1, size, size), bool))


def _share(edges: Bools, within: Bools) -> Scores:
    """Of the pixels of edges, those within; of none of them 1."""
    count = edges.sum((1, 2))
    return np.where(count == 0, 1.0, (edges & within).sum((1, 2)) / np.maximum(count, 1))


def intersection_over_union(found: Bools, asked: Bools) -> Scores:
    """Of silhouettes [N, H, W], [N], in 0..1; 1 where both are empty."""
    union = (found | asked).sum((1, 2))
    return np.where(union == 0, 1.0, (found & asked).sum((1, 2)) / np.maximum(union, 1))


def colour_error(found: NDArray[np.uint8], asked: NDArray[np.uint8]) -> Scores:
    """Root of the mean squared difference of images [N, h, w, C] in levels 0..255, [N]."""
    return np.sqrt(((found.astype(np.float64) - asked) ** 2).mean((1, 2, 3)))


# By the kind of hint: (hints of the drawn images, hints asked for) → how well each agrees.
AGREEMENTS: dict[str, Callable[[NDArray[Any], NDArray[Any]], Scores]] = {
    "edges": edge_f1,
    "silhouette": intersection_over_union,
    "colour": colour_error,
}


def hint_columns(columns: Sequence[Column]) -> list[HintColumn]:
    """The hints of a model, one for each control; none without a control."""
    return [column for column in columns if isinstance(column, HintColumn)]


def hint_column(columns: Sequence[Column]) -> HintColumn | None:
    """The hint of a model's only or first control; None: it has none."""
    return next(iter(hint_columns(columns)), None)


class Agreement:
    """The mean agreement of drawn images with their hints, under the column's name and the kind of hint, such as
    `control_edges`, with a 95 % interval; and as `_chance` the agreement with the hint of another image: what images of
    the same kind have that follow no hint.
    """

    def __init__(self, column: DerivedHint, codec: Codec, asked: NDArray[Any]) -> None:
        """
        Args:
            asked: the hint of each image to come, [N, *shape].
        """
        self._column, self._codec, self._asked = column, codec, asked
        self._own: list[Scores] = []
        self._others: list[Scores] = []
        self._count = 0

    def add(self, drawn: NDArray[np.uint8]) -> None:
        """Take the next images into account, [n, H, W, C]."""
        x0 = self._codec.encode(torch.from_numpy(drawn))
        found = self._column.derive(x0, torch.empty(len(drawn), 0)).numpy()
        rows = np.arange(self._count, self._count + len(drawn))
        agree = AGREEMENTS[self._column.kind]
        self._own.append(agree(found, self._asked[rows]))
        self._others.append(agree(found, self._asked[(rows + 1) % len(self._asked)]))
        self._count += len(drawn)

    def figures(self) -> dict[str, float]:
        """As of the class."""
        key, scores = f"{self._column.name}_{self._column.kind}", np.concatenate(self._own)
        mean, half = float(scores.mean()), NORMAL_95 * float(scores.std()) / np.sqrt(len(scores))
        return {
            key: mean,
            f"{key}_low": max(0.0, mean - half),
            f"{key}_high": mean + half,
            f"{key}_chance": float(np.concatenate(self._others).mean()),
        }
