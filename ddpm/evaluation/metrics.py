"""Figures of images from their features, by torch-fidelity: FID, sFID, IS, KID, precision and recall; and those of the
classes that were asked for.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from ddpm.evaluation.requirements import NEIGHBOURHOOD

KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
SHUFFLE_SEED = 2020  # of the Inception Score's splits and KID's subsets: torch-fidelity's own default

_ROWS = 1000  # of a distance matrix at a time


def frechet_distance(generated: Tensor, reference: Tensor) -> float:
    """FID: Fréchet distance of two Gaussians fitted to features [N, F] (Heusel et al. 2017).

    Of spatial features it is sFID (Nash et al. 2021).
    """
    # In float64: with few more images than features the covariances are close to singular.
    statistics = [fid_features_to_statistics(features.double()) for features in (generated, reference)]
    return float(fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"])


def frechet_distance_within(generated: Tensor, asked: Tensor, reference: Tensor, labels: Tensor) -> float | None:
    """Mean, over the classes, of the FID within a class, all classes alike.

    A class with fewer than two generated or two real images has no covariance and is left out. The FID of few images
    is biased upwards, so the mean compares only with one of the same labels asked for and the same reference, as under
    one protocol.

    Args:
        generated, reference: features, [N, F] and [M, F].
        asked: the class that was asked of each generated image, [N] int64.
        labels: that each real one has, [M] int64.

    Returns:
        None where no class has two images on both sides.
    """
    found = []
    for label in labels.unique():
        own, real = generated[asked == label], reference[labels == label]
        if min(len(own), len(real)) >= 2:
            found.append(_frechet_distance_of_few(own, real))
    return sum(found) / len(found) if found else None


def _frechet_distance_of_few(a: Tensor, b: Tensor) -> float:
    """`frechet_distance` by way of the images and not of the features, which are more.

    With Σ₁ = AᵀA and Σ₂ = BᵀB, Tr (Σ₁ Σ₂)^{1/2} is the sum of the singular values of A Bᵀ.
    """
    means = [features.double().mean(0) for features in (a, b)]
    roots = [_root(features.double() - mean) for features, mean in zip((a, b), means, strict=True)]
    traces = sum(root.square().sum() for root in roots)
    distance = (means[0] - means[1]).square().sum() + traces
    return float(distance - 2 * torch.linalg.svdvals(roots[0] @ roots[1].T).sum())


def _root(centred: Tensor) -> Tensor:
    """A with AᵀA the covariance of centred features [N, F], of no more than F rows."""
    scaled = centred / math.sqrt(len(centred) - 1)
    return torch.linalg.qr(scaled, mode="r").R if len(scaled) > scaled.shape[1] else scaled


def class_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of images whose class scores [N, K] are highest for their label [N] int64."""
    return float((logits.argmax(1) == labels).double().mean())


def inception_score(logits: Tensor, splits: int) -> tuple[float, float]:
    """IS: exp E KL(p(y|x) ‖ p(y)) of class scores [N, K], mean and standard deviation over `splits` parts (Salimans et
    al. 2016).
    """
    score = isc_features_to_metric(logits, splits=splits, shuffle=True, rng_seed=SHUFFLE_SEED)
    return float(score["inception_score_mean"]), float(score["inception_score_std"])


def kernel_distance(generated: Tensor, reference: Tensor) -> tuple[float, float]:
    """KID: unbiased MMD² of features [N, F] under the kernel (xᵀy/F + 1)³, mean and standard deviation over subsets
    (Bińkowski et al. 2018).

    About 0, and perhaps below, for two sets of one distribution.
    """
    found = kid_features_to_metric(
        generated,
        reference,
        kid_subsets=KID_SUBSETS,
        kid_subset_size=min(KID_SUBSET_SIZE, len(generated), len(reference)),
        rng_seed=SHUFFLE_SEED,
        verbose=False,
    )
    return float(found["kernel_inception_distance_mean"]), float(found["kernel_inception_distance_std"])


def precision_recall(generated: Tensor, reference: Tensor) -> tuple[float, float]:
    """Improved precision and recall: the share of generated features [N, F] within the reference's manifold, and the
    other way round; a manifold is the balls that reach to each point's third neighbour (Kynkäänniemi et al. 2019).
    """
    found = prc_features_to_metric(
        generated,
        reference,
        prc_neighborhood=NEIGHBOURHOOD,
        prc_batch_size=_ROWS,
        save_cpu_ram=True,
        verbose=False,
    )
    return float(found["precision"]), float(found["recall"])


def nearest(features: Tensor, reference: Tensor, count: int = 1) -> tuple[Tensor, Tensor]:
    """The nearest reference points of each feature [N, F]: distances and positions, [N, count], nearest first."""
    distances, positions = [], []
    for rows in features.split(_ROWS):
        found = torch.cdist(rows, reference).topk(count, largest=False).indices
        # cdist's squares cancel where two points are close, which is where it matters.
        exact = torch.linalg.vector_norm(rows[:, None] - reference[found], dim=-1)
        exact, order = exact.sort(stable=True)
        distances.append(exact)
        positions.append(found.gather(1, order))
    return torch.cat(distances), torch.cat(positions)
