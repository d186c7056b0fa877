"""embeddings/A/: the prepared images in the space of the CLIP A, as one memory-mapped array, and a manifest.

Of each image, in the order of prepared/, a unit vector: float32 [D]. Reading needs numpy and pydantic alone.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from ddpm.data.derived import Derived
from ddpm.data.store import Split

VECTORS = "vectors.npy"


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


class Embeddings(Derived[EmbeddingManifest]):
    """An open embeddings/A/ directory: float32 [count, D]."""

    array_file, manifest_type = VECTORS, EmbeddingManifest
    maker, command = "encoder", "embed"

    @property
    def made_of(self) -> tuple[str, str]:
        return self.manifest.encoder_sha256, self.manifest.images_sha256

    @property
    def stored_shape(self) -> tuple[int, ...]:
        return self.manifest.count, self.manifest.dimension

    @property
    def sha256(self) -> str:
        """Of the vectors."""
        return self.manifest.vectors_sha256

    def beside(self, split: Split) -> Split:
        """A split of the prepared data, or of what is derived of them, with the embeddings of its images."""
        return split.with_embeddings(self._array)
