"""What the samples of a study are scored by: figures with their jackknife, against the real images of a project."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.cells import BATCH
from bench.claims import Estimate, estimate
from ddpm.codecs.scale import encode_pixels
from ddpm.compute.device import pick_device
from ddpm.data.loader import Images, InMemoryImages
from ddpm.data.store import PreparedData
from ddpm.evaluation.distances import chosen
from ddpm.evaluation.extractor import SPATIAL_CHANNELS, CNNExtractor, Features, load_extractor
from ddpm.evaluation.features import extract
from ddpm.evaluation.metrics import frechet_distance, inception_score, precision_recall
from ddpm.layout import EXTRACTOR, PREPARED

GROUPS = 20  # of the images of a cell, for the jackknife

# More figures of some samples, by their positions [n].
MoreFigures = Callable[[Tensor], dict[str, float]]


class Judge:
    """A project's real images and its extractor."""

    def __init__(self, root: Path, *, seed: int, manifold: int = 2000) -> None:
        """
        Args:
            root: a project with prepared/ and extractor/; nothing is written there.
            seed: by which the real images are chosen that precision and recall are measured against.
            manifold: how many of those at most.
        """
        self.data = PreparedData.open(root / PREPARED)
        self._most, self._seed = manifold, seed
        self._extractor = load_extractor(root / EXTRACTOR, weights=None, device=pick_device())

    @functools.cached_property
    def real(self) -> Features:
        """Of the training images."""
        train = self.data.split("train")
        return self.features(train, len(train))

    @functools.cached_property
    def manifold(self) -> Tensor:
        """The features of some real images; the distances between all of a large set would take too long."""
        return self.real.features[chosen(len(self.real), min(self._most, len(self.real)), self._seed)]

    def features(self, images: Images, count: int) -> Features:
        """The features of the first `count` images, with spatial ones also of the small CNN: as for sFID seven
        channels, here of its last convolution's map.
        """
        parts = [np.arange(first, min(first + BATCH, count)) for first in range(0, count, BATCH)]
        found = extract(self._extractor, (images.rows(part) for part in parts), count)
        if not isinstance(self._extractor, CNNExtractor):
            return found
        maps = [_map(self._extractor, images.rows(part)) for part in parts]
        return Features(found.features, found.logits, torch.cat(maps))

    def distance(self, images: Images, count: int) -> float:
        """The FID of the first `count` images."""
        return frechet_distance(self.features(images, count).features, self.real.features)

    def fid(self, images: NDArray[np.uint8]) -> Estimate:
        """The FID of samples [N, H, W, C]."""
        found, real = self.features(InMemoryImages(images), len(images)).features, self.real.features
        return estimate(lambda kept: frechet_distance(found[torch.from_numpy(kept)], real), len(images), GROUPS)

    def estimates(self, features: Features, more: MoreFigures = lambda kept: {}) -> dict[str, Estimate]:
        """FID, spatial FID, IS, precision and recall of samples, and what else is asked for."""

        @functools.cache
        def scores(key: bytes) -> dict[str, float]:
            """Of the samples at these positions, int64."""
            kept = torch.frombuffer(bytearray(key), dtype=torch.int64)
            part = features[kept]
            precision, recall = precision_recall(part.features, self.manifold)
            found = {
                "fid": frechet_distance(part.features, self.real.features),
                "spatial_fid": frechet_distance(spatial(part), spatial(self.real)),
                "inception_score": inception_score(part.logits, 1)[0],
                "precision": precision,
                "recall": recall,
            }
            return found | more(kept)

        whole = scores(np.arange(len(features)).tobytes())
        return {
            name: estimate(lambda kept, name=name: scores(kept.tobytes())[name], len(features), GROUPS)  # type: ignore[misc]
            for name in whole
        }


@torch.inference_mode()
def _map(extractor: CNNExtractor, pixels: NDArray[np.uint8]) -> Tensor:
    network = extractor.network
    x = encode_pixels(torch.from_numpy(pixels)).to(next(network.parameters()).device)
    return network.convolutions(x)[:, :SPATIAL_CHANNELS].flatten(1).cpu()


def spatial(features: Features) -> Tensor:
    """What the spatial FID is of.

    Raises:
        AssertionError: there is none.
    """
    assert features.spatial is not None
    return features.spatial
