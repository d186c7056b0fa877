"""How much a figure would change with other samples of the same model: the bootstrap's standard deviation.

An interval is the figure ± 1.96 of it. The percentiles of resampled figures are no interval of FID or IS: both are
biased by the number of different images, of which a resample has fewer, and may all lie on one side of the figure.
The reference stays as it is, since the protocol fixes it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ddpm.evaluation.distances import Float64, wasserstein
from ddpm.evaluation.metrics import SHUFFLE_SEED
from ddpm.evaluation.progress import Done

NORMAL_95 = 1.96

SUBSET = 400  # points of a resample of the Wasserstein distance, whose cost grows with the cube


def interval(value: float, deviation: float) -> tuple[float, float]:
    """The normal 95 % interval of a figure that cannot be negative."""
    return max(value - NORMAL_95 * deviation, 0.0), value + NORMAL_95 * deviation


def share_interval(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of `count` samples (Wilson 1927), which holds also close to 0 and 1."""
    z = NORMAL_95**2 / count
    centre, half = share + z / 2, NORMAL_95 * np.sqrt(share * (1 - share) / count + z / (4 * count))
    return max(0.0, float((centre - half) / (1 + z))), min(1.0, float((centre + half) / (1 + z)))


def frechet_deviation(
    generated: Tensor, reference: Tensor, *, resamples: int, seed: int, on_resample: Done = lambda count: None
) -> float:
    """Standard deviation of the FID of features [N, F] to a fixed reference.

    Where the reference's covariance is C = S Sᵀ, Tr (Σ C)^{1/2} is Tr (Sᵀ Σ S)^{1/2}, of the covariance of the features
    times S. So a resample costs a weighted covariance and the eigenvalues of a symmetric matrix.
    """
    x, real = generated.double(), reference.double()
    shift = x.mean(0)
    x, real = x - shift, real - shift
    mean, covariance = real.mean(0), real.T.cov()
    values, vectors = torch.linalg.eigh(covariance)
    scaled = x @ (vectors * values.clamp(min=0).sqrt())
    squares = x.square().sum(1)
    count = len(x)
    distances = []
    for weights in _weights(count, resamples, seed):
        mu, scaled_mu = weights @ x / count, weights @ scaled / count
        trace = (weights @ squares - count * mu.square().sum()) / (count - 1)
        weighted = scaled * weights.sqrt()[:, None]
        product = (weighted.T @ weighted - count * scaled_mu.outer(scaled_mu)) / (count - 1)
        root_trace = torch.linalg.eigvalsh(product).clamp(min=0).sqrt().sum()
        on_resample(1)
        distances.append((mu - mean).square().sum() + trace + covariance.trace() - 2 * root_trace)
    return float(torch.stack(distances).std())


def score_deviation(logits: Tensor, splits: int, *, resamples: int, seed: int) -> float:
    """Standard deviation of the Inception Score of class scores [N, K], resampled within each split.

    E KL(p(y|x) ‖ p(y)) is the entropy of the mean of p(y|x) less the mean of its entropies, and both means are those
    of weighted rows.
    """
    count = len(logits)
    shuffled = logits[np.random.RandomState(SHUFFLE_SEED).permutation(count)].double()
    scores = torch.zeros(resamples, dtype=torch.float64)
    for split in range(splits):
        p = shuffled[split * count // splits : (split + 1) * count // splits].softmax(1)
        weights = torch.stack(list(_weights(len(p), resamples, seed + split))) / len(p)
        entropies = torch.special.entr(p).sum(1)
        scores += (torch.special.entr(weights @ p).sum(1) - weights @ entropies).exp() / splits
    return float(scores.std())


def wasserstein_deviation(
    generated: Float64, reference: Float64, *, resamples: int, seed: int, on_resample: Done = lambda count: None
) -> float:
    """Standard deviation of W₁ of points [N, D] to as many fixed ones, by the m out of n bootstrap: that of m points,
    times √(m/n).
    """
    size = min(SUBSET, len(generated))
    random = np.random.RandomState(seed)
    distances = []
    for _ in range(resamples):
        distances.append(wasserstein(generated[random.randint(0, len(generated), size)], reference[:size]))
        on_resample(1)
    return float(np.std(distances, ddof=1) * np.sqrt(size / len(generated)))


def _weights(count: int, resamples: int, seed: int) -> Iterator[Tensor]:
    """How often each of `count` samples is in a resample of as many. [count] float64, `resamples` times."""
    random = np.random.RandomState(seed % 2**32)
    for _ in range(resamples):
        yield torch.from_numpy(np.bincount(random.randint(0, count, count), minlength=count)).double()
