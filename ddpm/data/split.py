"""Which images are kept aside for validation."""

from __future__ import annotations

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
        share = int(np.clip(np.floor(len(group) * fraction + 0.5), 1, len(group) - 1))
        validation[random.permutation(group)[:share]] = True
    return np.flatnonzero(~validation).astype(np.int64), np.flatnonzero(validation).astype(np.int64)
