"""Figures of images from their features, by torch-fidelity: FID, sFID, IS, KID, precision and recall."""

from __future__ import annotations

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
