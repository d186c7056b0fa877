"""params.yaml, `models.V.codec`: what stands between the prepared data and the network."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from ddpm.config.base import FilePath, Positive, Section


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

    @model_validator(mode="after")
    def _latents_are_of_the_prepared_images(self) -> CodecConfig:
        if self.side is not None and self.latent is not None:
            raise ValueError("side and latent: give one of them; the latents are of the images as they are prepared")
        return self
