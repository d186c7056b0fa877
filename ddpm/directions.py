"""Vectors of which only the direction matters, such as embeddings by CLIP (numpy only)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def unit(embeddings: NDArray[Any]) -> NDArray[np.float32]:
    """Embeddings [..., D] with length 1; one of zeros stays as it is."""
    wide = embeddings.astype(np.float64)
    length = np.linalg.norm(wide, axis=-1, keepdims=True)
    return (wide / np.where(length > 0, length, 1)).astype(np.float32)


def slerp(start: NDArray[Any], end: NDArray[Any], shares: NDArray[Any]) -> NDArray[np.float32]:
    """Spherical interpolation (Shoemake 1985): the points of the arc from one embedding to another.

    Args:
        start, end: [D]; only their directions matter.
        shares: [n] of the arc, 0 is the start and 1 the end.

    Returns:
        [n, D], of length 1.

    Raises:
        ValueError: the two are opposite, or one is zeros: there is no one shortest arc.
    """
    a, b = (unit(each).astype(np.float64) for each in (start, end))
    cosine = float(np.clip(a @ b, -1, 1))
    if not (a.any() and b.any()) or cosine < -1 + 1e-6:
        raise ValueError("two embeddings that are opposite, or one of zeros, have no one arc between them")
    across = b - cosine * a
    angle, length = np.arccos(cosine), np.linalg.norm(across)
    across = across / length if length > 1e-12 else across
    turned = np.asarray(shares, np.float64)[:, None] * angle
    return unit(np.cos(turned) * a + np.sin(turned) * across)
