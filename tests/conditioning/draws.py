"""What a column draws of images for which nothing is asked."""

from __future__ import annotations

import numpy as np

from ddpm.conditioning.columns import Column


def assert_the_same_in_batches(column: Column, count: int, batch_size: int, *, seed: int) -> None:
    """The value of an image does not depend on the batch that it is drawn in."""
    whole = column.draw(count, seed=seed)
    firsts = range(0, count, batch_size)
    parts = [column.draw(min(batch_size, count - first), seed=seed, first=first) for first in firsts]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert (whole.dtype, whole.shape) == (np.int64, (count, *column.shape))
