"""FID and IS by torch-fidelity, fed with features that stream through an extractor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric

from ddpm.evaluation.extractor import Extractor


@dataclass(frozen=True)
class Features:
    """What an extractor says of a set of images: features [N, F] and logits [N, K]."""

    features: Tensor
    logits: Tensor

    def __len__(self) -> int:
        return len(self.features)

    @classmethod
    def concatenated(cls, parts: Sequence[Features]) -> Features:
        return cls(torch.cat([part.features for part in parts]), torch.cat([part.logits for part in parts]))

    def spread(self, count: int) -> Features:
        """Those of `count` images at even distances, so that data sorted by class keeps its classes."""
        positions = torch.linspace(0, len(self) - 1, count, dtype=torch.float64).round().long()
        return Features(self.features[positions], self.logits[positions])


def extract(extractor: Extractor, batches: Iterable[NDArray[np.uint8]]) -> Features:
    """Run batches [n, H, W, C] uint8 through the extractor."""
    features, logits = zip(*(extractor(batch) for batch in batches), strict=True)
    return Features(torch.cat(features), torch.cat(logits))


def frechet_distance(a: Features, b: Features) -> float:
    """FID: Fréchet distance of two Gaussians fitted to the features (Heusel et al. 2017)."""
    # In float64: with few more images than features the covariances are close to singular.
    statistics = [fid_features_to_statistics(each.features.double()) for each in (a, b)]
    return float(fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"])


def inception_score(images: Features, splits: int) -> tuple[float, float]:
    """IS: exp E KL(p(y|x) ‖ p(y)), mean and standard deviation over `splits` parts (Salimans et al. 2016)."""
    score = isc_features_to_metric(images.logits, splits=splits, shuffle=True, rng_seed=2020)
    return float(score["inception_score_mean"]), float(score["inception_score_std"])
