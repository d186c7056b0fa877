"""params.yaml, `models.V.objective`: what training minimises."""

from __future__ import annotations

from typing import Literal

from pydantic import (
    Field,
    model_validator,
)

from ddpm.config.base import Float, Section


class ObjectiveConfig(Section):
    """What training minimises, and which timesteps it looks at."""

    loss: Literal["simple", "vlb", "hybrid", "elbo", "cross_entropy"] = Field(
        "simple",
        description="simple: squared error; vlb: the variational bound; hybrid: simple, and 0.001 vlb for the variance;"
        " elbo: the bound of network.kind vae; cross_entropy: of network.kind classifier",
    )
    reconstruction_weight: Float = Field(
        1.0, gt=0, description="of the squared error beside the KL in elbo: 1/(2 variance) of a pixel given z"
    )
    weighting: Literal["none", "min_snr"] = Field("none", description="of the squared error over the timesteps")
    gamma: Float = Field(5.0, gt=0, description="the SNR above which min_snr weighs all alike")
    timestep_sampler: Literal["uniform", "importance"] = Field(
        "uniform", description="importance: by the size of each timestep's latest losses, as the vlb needs it"
    )

    dropping: Literal["together", "apart"] = Field(
        "together",
        description="how several conditions of a datum are dropped; together: by the same random number, so that the "
        "rarer only with the others; apart: each by its own",
    )

    @model_validator(mode="after")
    def _weighting_has_an_error_to_weigh(self) -> ObjectiveConfig:
        if self.loss in ("vlb", "elbo", "cross_entropy") and self.weighting != "none":
            raise ValueError(
                f"`weighting: {self.weighting}` is over the timesteps of a squared error, which `loss: {self.loss}` "
                "has none of"
            )
        return self
