"""params.yaml, `models.V.codec`: what stands between the prepared data and the network."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from ddpm.config.base import FilePath, Later, Positive, Section


class LatentConfig(Section):
    """The autoencoder whose latents a model learns."""

    autoencoder: FilePath = Field(
        description="a model directory such as models/autoencoder, of network.kind autoencoder; `ddpm encode` makes "
        "the latents of the prepared data with it"
    )

    @property
    def name(self) -> str | None:
        """The autoencoder's, if it is a model of the project: `models/NAME` or `NAME`."""
        path = Path(self.autoencoder)
        return path.name if path.parent in (Path("models"), Path()) else None


class EmbeddingConfig(Section):
    """The CLIP whose embeddings of the images a model learns."""

    encoder: FilePath = Field(
        description="a model directory such as models/clip, of network.kind clip; `ddpm embed` makes the embeddings of "
        "the prepared data with it"
    )


class CodecConfig(Section):
    """What a model learns of the prepared data, and draws."""

    side: Positive | None = Field(
        None,
        description="pixels of the images that the model draws, such as 16: the prepared ones averaged over squares; "
        "must divide theirs. null: theirs",
    )
    latent: LatentConfig | None = Field(
        None, description="the latents of an autoencoder in place of pixels (Rombach et al. 2022); null: pixels"
    )

    embedding: Later[EmbeddingConfig | None] = Field(
        None, description="a CLIP's embeddings of the images in place of pixels (DALL-E 2's prior); null: pixels"
    )

    @property
    def bounded(self) -> bool:
        """Whether x is of pixels, which lie in [-1, 1]."""
        return self.latent is None and self.embedding is None

    @model_validator(mode="after")
    def _one_of_them_is_learned(self) -> CodecConfig:
        given = [key for key in ("side", "latent", "embedding") if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(
                f"{given[0]} and {given[1]}: give one of them; latents and embeddings are of the images as they are "
                "prepared"
            )
        return self
