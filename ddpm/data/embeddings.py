"""embeddings/A/: the prepared images in the space of the CLIP A, as one memory-mapped array, and a manifest.

Of each image, in the order of prepared/, a unit vector: float32 [D]. Reading needs numpy and pydantic alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from ddpm.data.derived import check_fresh, open_derived
from ddpm.data.store import PreparedData, Split, SplitName
from ddpm.errors import UserError

VECTORS, MANIFEST = "vectors.npy", "manifest.json"


class EmbeddingManifest(BaseModel):
    """manifest.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoder: str
    """The CLIP's name."""
    encoder_sha256: str
    """Of its weights' file."""
    images_sha256: str
    """Of the prepared images."""
    count: int
    dimension: int
    """D."""
    vectors_sha256: str
    """Of vectors.npy."""


class Embeddings:
    """An open embeddings/A/ directory."""

    def __init__(self, manifest: EmbeddingManifest, vectors: NDArray[np.float32], data: PreparedData) -> None:
        self.manifest = manifest
        self._vectors, self._data = vectors, data

    @classmethod
    def open(cls, path: Path, data: PreparedData, encoder_sha256: str) -> Self:
        """
        Args:
            data: that they are the embeddings of.
            encoder_sha256: of the weights of the CLIP as it is now.

        Raises:
            UserError: they are missing or damaged, or of other data or another CLIP.
        """
        again = f"run `ddpm embed {path.name}`"
        manifest, vectors = open_derived(path / MANIFEST, path / VECTORS, EmbeddingManifest, again)
        check_fresh(path, "encoder", manifest.encoder_sha256, encoder_sha256, again)
        check_fresh(path, "prepared data", manifest.images_sha256, data.manifest.images_sha256, again)
        if vectors.dtype != np.float32 or vectors.shape != (manifest.count, manifest.dimension):
            raise UserError(f"{path / VECTORS}: damaged ({vectors.dtype} {list(vectors.shape)}); {again}")
        return cls(manifest, vectors, data)

    @property
    def sha256(self) -> str:
        """Of the vectors."""
        return self.manifest.vectors_sha256

    def beside(self, split: Split) -> Split:
        """A split of the prepared data, or of what is derived of them, with the embeddings of its images."""
        return split.with_embeddings(self._vectors)

    def split(self, name: SplitName) -> Split:
        """Of a split's images, with the labels and captions of these: float32 [n, D]."""
        return self._data.split(name).of(self._vectors)
