"""How far generated points or sequences are from real ones, in the data's own coordinates: Wasserstein and MMD.

Coordinates are those the network sees: each channel's range in the training data is −1..1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist, pdist

Float64 = NDArray[np.float64]

MAX_COUNT = 2000  # of each side: the assignment's cost grows with the cube
MEDIAN_COUNT = 1000  # enough for the median of all distances


def wasserstein(a: Float64, b: Float64) -> float:
    """W₁ of two sets of equally many points [N, D] under the Euclidean distance: exact, by the best assignment."""
    costs = cdist(a, b)
    return float(costs[linear_sum_assignment(costs)].mean())


def mmd(a: Float64, b: Float64, bandwidth: float) -> float:
    """Unbiased MMD² of two sets of equally many points [N, D] under a Gaussian kernel (Gretton et al. 2012).

    About 0, and perhaps below, for two sets of one distribution.
    """
    from torch_fidelity.metric_kid import kernel_mmd  # imports torch's compiler, which takes 5 seconds

    return float(kernel_mmd(a, b, kid_kernel="rbf", kid_kernel_rbf_sigma=bandwidth))


def median_distance(points: Float64) -> float:
    """The usual bandwidth: the median distance of two of the points [N, D]; 1 where they are all the same."""
    return float(np.median(pdist(points))) or 1.0


def chosen(count: int, limit: int, seed: int) -> NDArray[np.int64]:
    """`limit` of 0..count−1 at random, without repetition; all of them if there are fewer."""
    return np.random.RandomState(seed).permutation(count)[:limit].astype(np.int64)
