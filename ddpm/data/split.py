"""Which images are kept aside for validation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def stratified_split(labels: np.ndarray | None, n: int, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw the same share of every class for validation.

    A class of k ≥ 2 images gives round(k · fraction) of them, but at least one and not all. Without labels, all images
    are one class.

    Args:
        labels: int64 [n], or None.
        n: the number of images.
        fraction: share for validation, in (0, 1).
        seed: 0 ≤ seed < 2³². The split depends on nothing but these four.

    Returns:
        the row numbers of (training, validation): int64, increasing, disjoint, together 0..n-1.

    Raises:
        ValueError: a class has only one image, which cannot be on both sides.
    """
    # RandomState and not default_rng: numpy promises that its stream never changes.
    random = np.random.RandomState(seed)
    groups = [np.arange(n)] if labels is None else [np.flatnonzero(labels == label) for label in np.unique(labels)]
    validation = np.zeros(n, bool)
    for group in groups:
        if len(group) < 2:
            raise ValueError("a class needs two images to be split")
        validation[random.permutation(group)[: _share(len(group), fraction)]] = True
    return _rows(~validation), _rows(validation)


def grouped_split(
    groups: Sequence[str], combination: Sequence[bool], fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw a share of the groups for validation, each as a whole; and of the same share of the other groups that have
    at least three combinations, one combination each.

    The parts of such a combination are in the training split, each in other data, so that a model can be tested on
    combinations that it has not seen.

    Args:
        groups: of each datum, [n]; at least two different ones.
        combination: whether the datum is a combination, [n].
        fraction: as of `stratified_split`; a share of k groups is round(k · fraction), but at least one and not all.
        seed: as of `stratified_split`.

    Returns:
        the row numbers of (training, validation, combinations held out): int64, increasing. The first two are disjoint
        and together 0..n-1; the third is a part of the second.

    Raises:
        ValueError: there is only one group.
    """
    random = np.random.RandomState(seed)
    names, group = np.unique(np.array(groups), return_inverse=True)
    if len(names) < 2:
        raise ValueError("data of one group cannot be split")
    whole = random.permutation(len(names))[: _share(len(names), fraction)]
    validation = np.isin(group, whole)
    combined = np.array(combination, bool) & ~validation
    candidates = np.flatnonzero(np.bincount(group[combined], minlength=len(names)) >= 3)
    held_out = np.zeros(len(group), bool)
    if len(candidates) > 1:
        for chosen in random.permutation(candidates)[: _share(len(candidates), fraction)]:
            rows = np.flatnonzero(combined & (group == chosen))
            held_out[rows[random.randint(len(rows))]] = True
    validation |= held_out
    return _rows(~validation), _rows(validation), _rows(held_out)


def _share(count: int, fraction: float) -> int:
    """round(count · fraction), but at least one and not all."""
    return int(np.clip(np.floor(count * fraction + 0.5), 1, count - 1))


def _rows(mask: np.ndarray) -> np.ndarray:
    return np.flatnonzero(mask).astype(np.int64)
