"""`ddpm train A`, of an autoencoder: as any training, with what its loss compares images by."""

from __future__ import annotations

from pathlib import Path

import torch

from ddpm.config.params import Params
from ddpm.errors import UserError
from ddpm.evaluation.extractor import CNNExtractor, load_extractor
from ddpm.layout import EXTRACTOR
from ddpm.stages.train import train_variant
from ddpm.training.perceptual import OfLayers, Perceptual, read_lpips


def train_autoencoder(params: Params, variant: str, *, root: Path = Path()) -> None:
    """As `train_variant`.

    Raises:
        UserError: as `train_variant`, or the extractor or the file of LPIPS is missing or cannot be used.
    """
    train_variant(params, variant, root=root, perceptual=perceptual_of(params, variant, root))


def perceptual_of(params: Params, variant: str, root: Path) -> Perceptual | None:
    """What the loss compares images by; None where that has no weight."""
    options = params.variant(variant).objective.reconstruction
    if options is None or not options.perceptual:
        return None
    key = f"models.{variant}.objective.reconstruction"
    if options.lpips is not None:
        try:
            return read_lpips(root / options.lpips)
        except UserError as error:
            raise UserError(f"{key}.lpips: {error}") from None
    extractor = load_extractor(root / EXTRACTOR, weights=params.extractor.weights, device=torch.device("cpu"))
    if not isinstance(extractor, CNNExtractor):
        raise UserError(
            f"{key}.perceptual needs the features of a small network, and the extractor is "
            f"{extractor.identity['kind']}: name a file in {key}.lpips, or set {key}.perceptual to 0"
        )
    return OfLayers(extractor.network.convolutions, extractor.identity["sha256"])
