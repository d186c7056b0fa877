"""latents/A/: the latents of the prepared images by the autoencoder A, as one memory-mapped array, and a manifest.

Of each image, in the order of prepared/, the mean and log σ² of q(z | x), one after the other: float32 [2Z, h, w].
Reading needs numpy and pydantic alone.
"""

from __future__ import annotations

import hashlib

from pydantic import BaseModel, ConfigDict

from ddpm.data.derived import Derived

MOMENTS = "moments.npy"


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


class Latents(Derived[LatentManifest]):
    """An open latents/A/ directory: float32 [count, 2Z, h, w]."""

    array_file, manifest_type = MOMENTS, LatentManifest
    maker, command = "autoencoder", "encode"

    @property
    def made_of(self) -> tuple[str, str]:
        return self.manifest.autoencoder_sha256, self.manifest.images_sha256

    @property
    def stored_shape(self) -> tuple[int, ...]:
        channels, *sides = self.manifest.shape
        return self.manifest.count, 2 * channels, *sides

    @property
    def sha256(self) -> str:
        """Of the manifest, whose statistics change with the latents."""
        return hashlib.sha256(self.manifest.model_dump_json().encode()).hexdigest()
