"""params.yaml, `models.V.sampling`: the sampling plan."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BeforeValidator,
    Field,
    model_validator,
)

from ddpm.config.base import Bool, FilePath, Float, Int, Later, Positive, Section, validate
from ddpm.config.process import Variance
from ddpm.diffusion.samplers import SAMPLERS
from ddpm.diffusion.steps import Choices

SpacingName = Literal["leading", "trailing", "linspace", "even", "quadratic", "native", "karras", "exponential"]
SamplerName = Literal[
    "ancestral",
    "ddim",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2s",
    "unipc",
    "unipc_bh1",
    "euler",
    "euler_ancestral",
    "euler_maruyama",
    "heun",
    "langevin",
]


def _name_or_counts(value: Any) -> Any:
    if value in get_args(SpacingName) or (isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}(,[0-9]{1,9})*", value)):
        return value
    names = ", ".join(get_args(SpacingName))
    raise ValueError(f"expected one of {names}, or counts such as 10,10,20, found {value!r}")


Spacing = Annotated[SpacingName | str, BeforeValidator(_name_or_counts)]


class SamplingConfig(Section):
    """The sampling plan that evaluation and deployment use by default."""

    sampler: SamplerName = Field(
        "ddim",
        description="ancestral is DDPM's own; dpmpp_2m, dpmpp_2m_sde, dpmpp_2s (DPM-Solver++), unipc (with bh2) and "
        "unipc_bh1 need few steps; euler and euler_ancestral are ddim with eta 0 and 1, euler_maruyama is the reverse "
        "SDE, heun EDM's, langevin NCSN's",
    )
    steps: Positive = Field(50, description="evaluations of the network an image")
    variance: Variance | None = Field(
        None, description="of the ancestral sampler; null: the process's. fixed_large in few steps is DDIM's sigma-hat"
    )
    eta: Float = Field(0.0, ge=0, le=1, description="DDIM's noise: 0 deterministic, 1 the DDPM posterior")
    spacing: Spacing = Field(
        "trailing",
        description="which timesteps are visited; even: improved DDPM's, also with counts of equal sections such as "
        "10,10,20; quadratic: more of those with little noise; native: even in the process's own time, exact of edm "
        "and flow; karras, exponential: even in a root, or the logarithm, of sigma",
    )
    churn: Float = Field(0.0, ge=0, description="of heun: EDM's S_churn, noise added at each step; 0: none")
    churn_interval: tuple[Float, Float] | None = Field(
        None, description="of heun: S_tmin and S_tmax, the sigma between which there is churn; null: everywhere"
    )
    churn_noise: Float = Field(1.0, gt=0, description="of heun: S_noise, factor on that noise")
    langevin_steps: Positive = Field(5, le=1000, description="of langevin: at each level")
    langevin_epsilon: Float | None = Field(
        None, gt=0, description="of langevin: step size at the last level; null: by NCSNv2's technique 4"
    )
    clip: Bool = Field(True, description="clip the predicted x0 to [-1, 1]")
    clip_range: Later[Float | None] = Field(
        None,
        gt=0,
        description="clip to [-clip_range, clip_range] instead. null: 1, and of latents and embeddings no clipping. "
        "Priors of Karlo and Kandinsky: 5",
    )
    dynamic_threshold: Float | None = Field(
        None, gt=0, le=1, description="instead of clip: scale x0 down by this quantile of its magnitudes, such as 0.995"
    )

    guidance_scale: Float = Field(
        1.0,
        ge=0,
        le=1000,
        description="of a conditional model, or one with a guide. 1: as trained; 0: without its condition, or as the "
        "guide; above 1: more typical. Of a classifier or a CLIP as guide: what multiplies its gradient, 0: none",
    )
    guidance_interval: tuple[Float, Float] | None = Field(
        None,
        description="shares of the process, 0 data, 1 noise, between which guidance_scale holds, such as [0.2, 0.8]; "
        "null: everywhere",
    )

    guide: FilePath | None = Field(
        None,
        description="a model directory such as models/classifier: a classifier of the same classes, a CLIP of noisy "
        "images, or a weaker model to move away from (autoguidance); null: the model itself without its condition",
    )

    control_scale: Float = Field(
        1.0, ge=0, le=10, description="of a model with a control: the weight of what the control adds; 0: none"
    )
    control_interval: tuple[Float, Float] | None = Field(
        None, description="shares of the process, 0 data, 1 noise, between which there is a control; null: everywhere"
    )
    guess: Bool = Field(
        False,
        description="the control's guess mode: its weight falls by 0.825 from each level to the next larger one, and "
        "guidance moves away from the model without its condition and without the control",
    )

    candidates: Later[Int] = Field(
        1,
        ge=1,
        le=64,
        description="of a prior: embeddings drawn for each, of which the one nearest to the text's embedding is kept; "
        "DALL-E 2: 2",
    )

    def unused(self, *, bounded: bool) -> str | None:
        """Why a key that is written decides nothing; None: there is none such.

        Args:
            bounded: whether the data have bounds. Where they have none, as of latents, `clip_range` clips by itself.
        """
        if self.clip_range is None:
            return None
        found = f"clip_range is {self.clip_range:g}"
        if self.dynamic_threshold is not None:
            return f"{found}, but dynamic_threshold takes the place of clipping: leave one of them out"
        return None if self.clip or not bounded else f"{found}, but clip is false: leave one of them out"

    @property
    def levels(self) -> int:
        """How many levels of the process are visited."""
        return SAMPLERS[self.sampler].levels(Choices(self.steps, langevin_steps=self.langevin_steps))

    @property
    def guide_name(self) -> str | None:
        """The guide's name, if it is a model of the project: `models/NAME` or `NAME`."""
        path = Path(self.guide or "")
        return path.name if self.guide and path.parent in (Path("models"), Path()) else None

    @model_validator(mode="after")
    def _the_interval_is_one(self) -> SamplingConfig:
        low, high = self.churn_interval or (0, 1)
        if not 0 <= low <= high:
            raise ValueError(f"`churn_interval` is [low, high] with 0 <= low <= high, found [{low:g}, {high:g}]")
        for key in ("guidance_interval", "control_interval"):
            low, high = getattr(self, key) or (0, 1)
            if not 0 <= low <= high <= 1:
                raise ValueError(f"`{key}` is [low, high] with 0 <= low <= high <= 1, found [{low}, {high}]")
        return self

    @model_validator(mode="after")
    def _counts_add_up(self) -> SamplingConfig:
        if self.spacing not in get_args(SpacingName):
            counted = sum(map(int, self.spacing.split(",")))
            if counted != self.levels:
                raise ValueError(f"spacing {self.spacing} has {counted} steps, but steps is {self.steps}")
        return self


def guided(
    plan: SamplingConfig, scale: float, where: str, interval: tuple[float, float] | Literal["own"] | None = "own"
) -> SamplingConfig:
    """The plan with another guidance scale and, unless it keeps its own, another interval.

    Args:
        where: the numbers are from, for errors.

    Raises:
        UserError: they are no scale or no interval.
    """
    changed = {"guidance_scale": float(scale)} | ({} if interval == "own" else {"guidance_interval": interval})
    return validate(SamplingConfig, {**plan.model_dump(), **changed}, where)
