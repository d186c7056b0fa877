"""params.yaml, `models.V.condition`: what the network is told beside x and t."""

from __future__ import annotations

from pydantic import Field

from ddpm.config.base import Bool, Float, Section


class LabelConfig(Section):
    """The class of a datum."""

    drop: Float = Field(
        0.1,
        ge=0,
        lt=1,
        description="share of the training data whose label is replaced by the null class, for guidance; 0: none",
    )
    perceptron: Bool = Field(
        False, description="two layers between the class's embedding and the network, as denoising_diffusion_pytorch"
    )


class ConditionConfig(Section):
    """What a model is told; of a classifier, what it answers. Without a key a model is unconditional."""

    label: LabelConfig | None = Field(None, description="the class: of data with labels, such as class folders")

    @property
    def drops(self) -> dict[str, float]:
        """The share of the training data in which each is dropped, of those that are."""
        shares = {key: getattr(section, "drop", 0.0) for key, section in self}
        return {key: share for key, share in shares.items() if share}
