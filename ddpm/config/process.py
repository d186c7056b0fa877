"""params.yaml, `models.V.process`: the forward process and what the network predicts."""

from __future__ import annotations

from typing import Literal

from pydantic import (
    Field,
    model_validator,
)

from ddpm.config.base import Float, Positive, Section

MOST_TIMESTEPS = 100_000  # of a process; the tables of every one are kept
ScheduleName = Literal["linear", "cosine", "scaled_linear", "sigmoid", "explicit"]
Prediction = Literal["epsilon", "x0", "v"]
Variance = Literal["fixed_large", "fixed_small", "learned_range"]


class ProcessConfig(Section):
    """The forward process and what the network is asked to predict of it."""

    timesteps: Positive = Field(1000, le=MOST_TIMESTEPS, description="T, steps of the forward process")
    schedule: ScheduleName = Field("linear", description="of the betas; explicit: those of `betas`")
    betas: tuple[Float, ...] | None = Field(None, description="of schedule: explicit, one for each timestep")
    prediction: Prediction = Field("epsilon", description="what the network outputs")
    variance: Variance = Field(
        "fixed_large",
        description="of a reverse step: beta, beta-tilde, or learned_range: the network outputs where between the two",
    )

    @model_validator(mode="after")
    def _explicit_betas_are_a_process(self) -> ProcessConfig:
        if (self.schedule == "explicit") != (self.betas is not None):
            raise ValueError(f"`schedule: explicit` and `betas` go together; found `schedule: {self.schedule}`")
        if self.betas is None:
            return self
        if len(self.betas) != self.timesteps:
            raise ValueError(f"betas has {len(self.betas)} numbers for {self.timesteps} timesteps")
        for number, beta in enumerate(self.betas):
            if not (0 < beta < 1 or (beta == 1 and number == self.timesteps - 1)):
                raise ValueError(f"betas must be inside (0, 1), only the last may be 1; betas[{number}] is {beta}")
        if self.betas[-1] == 1 and self.prediction == "epsilon":
            raise ValueError(
                "the last beta is 1, which leaves only noise: prediction must then be x0 or v, not epsilon"
            )
        return self
