"""params.yaml, `models.V.process`: the forward process and what the network predicts."""

from __future__ import annotations

from typing import Literal

from pydantic import (
    Field,
    model_validator,
)

from ddpm.config.base import Float, Later, Positive, Section
from ddpm.diffusion.coordinates import KINDS, Coordinates

AFTER_NOISE = ("epsilon", "score")  # predictions that say nothing of x_0 where no signal is left
# Of the kinds; which has which is said in `diffusion.coordinates`.
NUMBERS = ("sigma_min", "sigma_max", "sigma_data", "rho", "shift", "log_sigma_mean", "log_sigma_std", "time")
MOST_TIMESTEPS = 100_000  # of a process; the tables of every one are kept
ScheduleName = Literal["linear", "cosine", "scaled_linear", "sigmoid", "explicit"]
Kind = Literal["vp", "ve", "edm", "flow"]
Prediction = Literal["epsilon", "x0", "v", "score", "edm", "velocity"]
Variance = Literal["fixed_large", "fixed_small", "learned_range"]


class ProcessConfig(Section):
    """The forward process and what the network is asked to predict of it."""

    kind: Later[Kind] = Field(
        "vp",
        description="vp: variance preserving, DDPM's; ve: variance exploding, NCSN's; edm: EDM's, at any sigma; flow: "
        "rectified flow",
    )
    timesteps: Positive = Field(
        1000,
        le=MOST_TIMESTEPS,
        description="T, steps of the forward process; of edm and flow: levels to sample at",
    )
    schedule: ScheduleName = Field("linear", description="of the betas; explicit: those of `betas`")
    betas: tuple[Float, ...] | None = Field(None, description="of schedule: explicit, one for each timestep")
    sigma_min: Later[Float | None] = Field(
        None, gt=0, description="least noise of ve (null: 0.01) and edm (null: 0.002); of flow the first t (null: 1/T)"
    )
    sigma_max: Later[Float | None] = Field(None, gt=0, description="most noise of ve (null: 50) and edm (null: 80)")
    sigma_data: Later[Float | None] = Field(
        None, gt=0, description="of kind or prediction edm: standard deviation of the data in [-1, 1] (null: 0.5)"
    )
    rho: Later[Float | None] = Field(
        None, gt=0, description="of edm: how many of the levels have little noise (null: 7)"
    )
    shift: Later[Float | None] = Field(
        None, gt=0, description="of flow: factor on sigma/a of the visited levels (null: 1)"
    )
    log_sigma_mean: Later[Float | None] = Field(
        None,
        description="of edm and flow: mean of ln(sigma/a) in training (null: -1.2, and 0 of a flow, where it is the "
        "logit of t)",
    )
    log_sigma_std: Later[Float | None] = Field(
        None, gt=0, description="its standard deviation in training (null: 1.2, and 1 of a flow)"
    )
    time: Later[Literal["number", "sigma"] | None] = Field(
        None,
        description="of ve: the network's time, the number of the level (null: number) or sigma itself, with "
        "which it can be sampled at any level; training draws the `timesteps` numbered levels either way",
    )
    prediction: Prediction = Field(
        "epsilon",
        description="what the network outputs; score: sigma times the score; edm: EDM's F; velocity: epsilon - x0",
    )
    variance: Variance = Field(
        "fixed_large",
        description="of a reverse step: beta, beta-tilde, or learned_range: the network outputs where between the two",
    )

    @model_validator(mode="after")
    def _numbers_are_of_the_kind(self) -> ProcessConfig:
        used = {*KINDS[self.kind].numbers, *(("sigma_data",) if "edm" in (self.kind, self.prediction) else ())}
        for name in NUMBERS:
            if getattr(self, name) is not None and name not in used:
                raise ValueError(
                    f"`{name}` is not used by `kind: {self.kind}`; it uses: {', '.join(sorted(used)) or 'none'}"
                )
        if self.kind != "vp" and "schedule" in self.model_fields_set and self.schedule != "linear":
            raise ValueError(f"`schedule` is of `kind: vp`; found `kind: {self.kind}` and `schedule: {self.schedule}`")
        if self.kind == "flow" and self.prediction in AFTER_NOISE:
            raise ValueError(
                f"`kind: flow` begins at noise alone: prediction must be velocity, x0, v or edm, not {self.prediction}"
            )
        numbers = Coordinates.of(self.model_dump())
        if numbers.sigma_min >= (1 if self.kind == "flow" else numbers.sigma_max) and self.timesteps > 1:
            most = "1" if self.kind == "flow" else f"sigma_max, {numbers.sigma_max:g}"
            raise ValueError(f"`sigma_min` must be below {most}; it is {numbers.sigma_min:g}")
        return self

    @model_validator(mode="after")
    def _learned_variance_is_between_numbered_levels(self) -> ProcessConfig:
        if self.variance == "learned_range" and self.continuous:
            raise ValueError(f"`variance: learned_range` needs numbered levels, which `{self.timed_by}` has not")
        return self

    @property
    def timed_by(self) -> str:
        """The key that decides what the network is given as its time, with its value, for errors."""
        return f"kind: {self.kind}" if self.time is None else f"time: {self.time}"

    @property
    def continuous(self) -> bool:
        """Whether the network is given the noise level itself, as a float."""
        return Coordinates.of(self.model_dump()).continuous

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
        if self.betas[-1] == 1 and self.prediction in AFTER_NOISE:
            raise ValueError(
                f"the last beta is 1, which leaves only noise: prediction must then be x0 or v, not {self.prediction}"
            )
        return self
