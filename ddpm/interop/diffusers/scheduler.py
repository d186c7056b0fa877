"""The configuration of diffusers' schedulers, theirs to ours and ours to theirs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, Field, field_validator, model_validator

from ddpm.config.base import Fraction, validate
from ddpm.config.process import MOST_TIMESTEPS, Prediction, ProcessConfig, ScheduleName, Variance
from ddpm.config.sampling import SamplerName, SamplingConfig
from ddpm.diffusion.plans import NO_CLIP
from ddpm.diffusion.schedules import Float64, Schedule
from ddpm.errors import UserError
from ddpm.interop.published import process_of

_PREDICTIONS: dict[str, Prediction] = {"epsilon": "epsilon", "sample": "x0", "v_prediction": "v"}
_SCHEDULE_NAMES: dict[ScheduleName, str] = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "cosine": "squaredcos_cap_v2",
}
_VARIANCES: dict[str, Variance] = {
    "fixed_small": "fixed_small",
    "fixed_small_log": "fixed_small",
    "fixed_large": "fixed_large",
    "fixed_large_log": "fixed_large",
    "learned_range": "learned_range",
}
# Their solvers that ours has under another name, each with its usual number of steps.
_SAMPLERS: dict[str, tuple[SamplerName, int]] = {
    "DDPMScheduler": ("ancestral", 1000),
    "DDPMParallelScheduler": ("ancestral", 1000),
    "DDIMScheduler": ("ddim", 50),
    "DDIMParallelScheduler": ("ddim", 50),
    "DPMSolverMultistepScheduler": ("dpmpp_2m", 20),
    "DPMSolverSinglestepScheduler": ("dpmpp_2s", 20),
    "UniPCMultistepScheduler": ("unipc", 20),
    "EulerDiscreteScheduler": ("euler", 50),
    "EulerAncestralDiscreteScheduler": ("euler_ancestral", 50),
    "HeunDiscreteScheduler": ("heun", 49),
}
# Those whose solver ours lacks, and whose process is one of betas all the same.
_OTHER_SOLVERS = (
    "DDIMInverseScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepInverseScheduler",
    "DPMSolverSDEScheduler",
    "IPNDMScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "TCDScheduler",
)
# Where a class has other defaults than DDPMScheduler.
_LATENT_ENDS = {"beta_start": 0.00085, "beta_end": 0.012}
_DEFAULTS: dict[str, dict[str, float]] = {
    "DPMSolverSDEScheduler": _LATENT_ENDS,
    "HeunDiscreteScheduler": _LATENT_ENDS,
    "KDPM2AncestralDiscreteScheduler": _LATENT_ENDS,
    "KDPM2DiscreteScheduler": _LATENT_ENDS,
}


class SchedulerConfig(BaseModel, frozen=True):
    """What decides the process in their scheduler_config.json, with the schedulers' defaults; other keys are passed
    over, and so is what concerns a solver of theirs alone."""

    class_name: str = Field(alias="_class_name")
    num_train_timesteps: Annotated[int, Field(gt=0, le=MOST_TIMESTEPS)] = 1000
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"] = "linear"
    beta_start: Fraction = 1e-4
    beta_end: Fraction = 0.02
    trained_betas: Annotated[tuple[float, ...], Field(min_length=1)] | None = None
    rescale_betas_zero_snr: bool = False
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon"
    variance_type: (
        Literal["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned_range"] | None
    ) = "fixed_small"
    clip_sample: bool | None = None
    clip_sample_range: Annotated[float, Field(ge=1, le=1)] = 1
    thresholding: bool = False
    dynamic_thresholding_ratio: Annotated[float, Field(gt=0, le=1)] = 0.995
    sample_max_value: float = 1.0
    timestep_spacing: Literal["leading", "trailing", "linspace"] = "leading"
    steps_offset: int = 0
    set_alpha_to_one: bool = True
    algorithm_type: str | None = None
    solver_type: str | None = None
    solver_order: int = 2
    use_flow_sigmas: Literal[False] = False
    timestep_type: Literal["discrete"] = "discrete"

    @model_validator(mode="before")
    @classmethod
    def _by_the_defaults_of_its_class(cls, raw: Any) -> Any:
        name = raw.get("_class_name") if isinstance(raw, dict) else None
        return {**_DEFAULTS.get(name, {}), **raw} if isinstance(name, str) else raw

    @field_validator("class_name")
    @classmethod
    def _it_is_of_a_process_of_betas(cls, value: str) -> str:
        if value not in _SAMPLERS and value not in _OTHER_SOLVERS:
            known = "DDPM, DDIM, PNDM, DPMSolver, UniPC, Euler, LMS and others, of EDM EDMEuler and EDMDPMSolver"
            known += "Multistep, of flows FlowMatchEuler and FlowMatchHeun, of scores ScoreSdeVe"
            raise ValueError(f"{value!r:.60} is no scheduler whose process is one of betas; ddpm knows {known}")
        return value

    @model_validator(mode="after")
    def _a_threshold_has_no_bound(self) -> SchedulerConfig:
        if self.thresholding and self.sample_max_value < NO_CLIP and self.is_exact:
            raise ValueError(
                f"sample_max_value is {self.sample_max_value}: ddpm has no bound of a dynamic threshold; expected "
                f"{NO_CLIP}"
            )
        return self

    @property
    def is_exact(self) -> bool:
        """Whether ours samples as theirs does, step by step."""
        return _SAMPLERS.get(self.class_name, ("", 0))[0] in ("ancestral", "ddim")


def process_config(theirs: SchedulerConfig, where: str) -> tuple[ProcessConfig, SamplingConfig, tuple[str, ...]]:
    """The process of their scheduler, the sampling plan that comes closest to it, and what of it was not taken over.

    Args:
        where: what errors call it.

    Raises:
        UserError: its betas are no process, or none that the prediction can be sampled from.
    """
    process = process_of(_betas(theirs), (*_SCHEDULE_NAMES, "sigmoid"), where, rtol=1e-5, atol=0)
    process |= {
        "prediction": _PREDICTIONS[theirs.prediction_type],
        "variance": _VARIANCES[theirs.variance_type or "fixed_small"],
    }
    sampling, notes = _sampling(theirs)
    return validate(ProcessConfig, process, where), sampling, notes


def _sampling(theirs: SchedulerConfig) -> tuple[SamplingConfig, tuple[str, ...]]:
    """The plan that comes closest to a scheduler, and in words what of it was left out."""
    name = theirs.class_name
    sampler, steps = _SAMPLERS.get(name, ("ddim", 50))
    if sampler == "dpmpp_2m" and (theirs.algorithm_type or "").startswith("sde"):
        sampler = "dpmpp_2m_sde"
    if sampler == "unipc" and theirs.solver_type == "bh1":
        sampler = "unipc_bh1"
    steps = min(steps, theirs.num_train_timesteps)
    clip, threshold = theirs.clip_sample, theirs.dynamic_thresholding_ratio if theirs.thresholding else None
    if theirs.is_exact:
        plan = SamplingConfig(
            sampler=sampler,
            steps=steps,
            spacing=theirs.timestep_spacing,
            clip=clip is not False,
            dynamic_threshold=threshold,
        )
        offset = f"steps_offset {theirs.steps_offset} is ignored" if theirs.steps_offset else ""
        alpha = "" if theirs.set_alpha_to_one else "set_alpha_to_one is taken as true"
        return plan, tuple(filter(None, (offset, alpha)))
    plan = SamplingConfig(sampler=sampler, steps=steps, clip=bool(clip), dynamic_threshold=threshold)
    if name not in _SAMPLERS:
        return plan, (f"ddpm has no {name}: it is sampled by {sampler} in {steps} steps",)
    order = "" if theirs.solver_order == 2 else f", of order 2 and not {theirs.solver_order}"
    return plan, (f"{name} is {sampler} in {steps} steps here, at trailing timesteps{order}",)


def _betas(theirs: SchedulerConfig) -> Float64:
    """Their betas, [T], in float64."""
    start, end, timesteps = theirs.beta_start, theirs.beta_end, theirs.num_train_timesteps
    betas: Float64
    if theirs.trained_betas is not None:
        betas = np.array(theirs.trained_betas)
    elif theirs.beta_schedule == "linear":
        betas = np.linspace(start, end, timesteps)
    elif theirs.beta_schedule == "scaled_linear":
        betas = np.linspace(start**0.5, end**0.5, timesteps) ** 2
    elif theirs.beta_schedule == "sigmoid":
        betas = start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, timesteps)))
    else:
        betas = Schedule.named("cosine", timesteps).betas
    return _without_signal_at_the_end(betas) if theirs.rescale_betas_zero_snr else betas


def _without_signal_at_the_end(betas: Float64) -> Float64:
    """The betas whose √ᾱ is shifted to end at 0 and scaled to begin as it did (Lin et al. 2024, algorithm 1)."""
    signal = np.sqrt(np.cumprod(1 - betas))
    signal = (signal - signal[-1]) * (signal[0] / (signal[0] - signal[-1]))
    alpha_bar = signal**2
    return 1 - alpha_bar / np.append(1.0, alpha_bar[:-1])


def their_scheduler(process: ProcessConfig, sampling: SamplingConfig) -> dict[str, Any]:
    """Their scheduler_config.json of our process and, of our sampling, of what it says: the variance, the strides and
    how x̂_0 is held. The sampler is Algorithm 2, and the number of steps the pipeline's to say.

    Raises:
        UserError: the sampling is of a choice that theirs lacks; the message names the key.
    """
    if process.kind != "vp" or process.prediction not in _PREDICTIONS.values():
        key = "kind" if process.kind != "vp" else "prediction"
        raise UserError(f"process.{key} is {getattr(process, key)}, which diffusers' DDPMScheduler does not have")
    if sampling.spacing not in ("leading", "trailing", "linspace"):
        raise UserError(f"sampling.spacing is {sampling.spacing}, which diffusers' DDPMScheduler does not have")
    variance = sampling.variance or process.variance
    if process.variance == "learned_range" and variance != "learned_range":
        raise UserError(
            f"sampling.variance is {variance}, which diffusers' DDPMScheduler does not have of a network that learned "
            "its variance"
        )
    threshold = sampling.dynamic_threshold
    betas = Schedule.of(process.model_dump()).betas
    # A short linear schedule is held below 1, which its two ends cannot say, and of the sigmoid they have no name.
    named = process.schedule in _SCHEDULE_NAMES and not (process.schedule == "linear" and betas[-1] >= 0.999)
    predictions = {ours: theirs for theirs, ours in _PREDICTIONS.items()}
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": process.timesteps,
        "beta_schedule": _SCHEDULE_NAMES.get(process.schedule, "linear"),
        "beta_start": float(betas[0]) if named else 1e-4,
        "beta_end": float(betas[-1]) if named else 0.02,
        "trained_betas": None if named else betas.tolist(),
        "variance_type": variance,
        "prediction_type": predictions[process.prediction],
        "clip_sample": sampling.clip,
        "thresholding": threshold is not None,
        "dynamic_thresholding_ratio": threshold or 0.995,  # without thresholding: their default, and without meaning
        "sample_max_value": NO_CLIP,
        "timestep_spacing": sampling.spacing,
    }
