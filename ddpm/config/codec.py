"""params.yaml, `models.V.codec`: what stands between the prepared data and the network."""

from __future__ import annotations

from pydantic import Field

from ddpm.config.base import Positive, Section


class CodecConfig(Section):
    """What a model learns of the prepared data, and draws."""

    side: Positive | None = Field(
        None,
        description="pixels of the images that the model draws, such as 16: the prepared ones averaged over squares; "
        "must divide theirs. null: theirs",
    )
