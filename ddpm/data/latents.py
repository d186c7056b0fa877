"""latents/A/: the latents of the prepared images by the autoencoder A, as one memory-mapped array, and a manifest.

Of each image, in the order of prepared/, the mean and log σ² of q(z | x), one after the other: float32 [2Z, h, w].
Reading needs numpy and pydantic alone.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from ddpm.data.derived import check_fresh, open_derived
from ddpm.data.store import PreparedData, Split, SplitName
from ddpm.errors import UserError

MOMENTS, MANIFEST = "moments.npy", "manifest.json"


class LatentManifest(BaseModel):
    """manifest.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    autoencoder: str
    """Its name."""
    autoencoder_sha256: str
    """Of its weights' file."""
    images_sha256: str
    """Of the prepared images."""
    count: int
    shape: tuple[int, ...]
    """Of a latent, (Z, h, w)."""
    mean: tuple[float, ...]
    """Of z over the training split, a channel each."""
    std: tuple[float, ...]
    scale: float
    """1 / the std of z over the training split, all channels together."""


class Latents:
    """An open latents/A/ directory."""

    def __init__(self, manifest: LatentManifest, moments: NDArray[np.float32], data: PreparedData) -> None:
        self.manifest = manifest
        self._moments, self._data = moments, data

    @classmethod
    def open(cls, path: Path, data: PreparedData, autoencoder_sha256: str) -> Self:
        """
        Args:
            data: that they are the latents of.
            autoencoder_sha256: of the weights of the autoencoder as it is now.

        Raises:
            UserError: they are missing or damaged, or of other data or another autoencoder.
        """
        again = f"run `ddpm encode {path.name}`"
        manifest, moments = open_derived(path / MANIFEST, path / MOMENTS, LatentManifest, again)
        check_fresh(path, "autoencoder", manifest.autoencoder_sha256, autoencoder_sha256, again)
        check_fresh(path, "prepared data", manifest.images_sha256, data.manifest.images_sha256, again)
        channels, *sides = manifest.shape
        if moments.dtype != np.float32 or moments.shape != (manifest.count, 2 * channels, *sides):
            raise UserError(f"{path / MOMENTS}: damaged ({moments.dtype} {list(moments.shape)}); {again}")
        return cls(manifest, moments, data)

    @property
    def sha256(self) -> str:
        """Of the manifest, whose statistics change with the latents."""
        return hashlib.sha256(self.manifest.model_dump_json().encode()).hexdigest()

    def split(self, name: SplitName) -> Split:
        """Of a split's images, with the labels and captions of these: float32 [n, 2Z, h, w]."""
        return self._data.split(name).of(self._moments)
