"""The configuration of diffusers' schedulers of processes in continuous time: EDM's, flows' and scores'."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, Field

from ddpm.config.base import validate
from ddpm.config.process import MOST_TIMESTEPS, ProcessConfig
from ddpm.config.sampling import SamplingConfig

Number = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Converted = tuple[ProcessConfig, SamplingConfig, tuple[str, ...]]


class EdmConfig(BaseModel, frozen=True):
    """What decides the process and the levels of EDMEulerScheduler and EDMDPMSolverMultistepScheduler, with their
    defaults; other keys are passed over."""

    class_name: str = Field(alias="_class_name")
    sigma_min: Number = 0.002
    sigma_max: Number = 80.0
    sigma_data: Number = 0.5
    sigma_schedule: Literal["karras", "exponential"] = "karras"
    rho: Number = 7.0
    # Their other one is of a network that outputs −F.
    prediction_type: Literal["epsilon"] = "epsilon"
    num_train_timesteps: int = 1000
    solver_order: Literal[1, 2, 3] = 2
    solver_type: Literal["midpoint", "heun"] = "midpoint"
    algorithm_type: Literal["dpmsolver++", "sde-dpmsolver++"] = "dpmsolver++"
    thresholding: Literal[False] = False
    final_sigmas_type: Literal["zero"] = "zero"


class FlowConfig(BaseModel, frozen=True):
    """What decides the levels of FlowMatchEulerDiscreteScheduler and FlowMatchHeunDiscreteScheduler, as `EdmConfig`."""

    class_name: str = Field(alias="_class_name")
    num_train_timesteps: Literal[1000] = 1000  # by which their networks' time is multiplied, as ours
    shift: Number = 1.0
    use_dynamic_shifting: Literal[False] = False
    shift_terminal: None = None
    use_karras_sigmas: Literal[False, None] = False
    use_exponential_sigmas: Literal[False, None] = False
    use_beta_sigmas: Literal[False, None] = False
    invert_sigmas: Literal[False] = False
    stochastic_sampling: Literal[False] = False


class ScoreConfig(BaseModel, frozen=True):
    """What decides the levels of ScoreSdeVeScheduler, of data in [0, 1], as `EdmConfig`."""

    num_train_timesteps: Annotated[int, Field(gt=0, le=MOST_TIMESTEPS)] = 2000
    snr: Number = 0.15
    sigma_min: Number = 0.01
    sigma_max: Number = 1348.0
    correct_steps: Annotated[int, Field(ge=0)] = 1


def _edm(config: Mapping[str, Any], where: str) -> Converted:
    theirs = validate(EdmConfig, config, where)
    numbers = {name: getattr(theirs, name) for name in ("sigma_min", "sigma_max", "sigma_data", "rho")}
    process = {"kind": "edm", "prediction": "edm", "variance": "fixed_small", **numbers}
    spacing = "native" if theirs.sigma_schedule == "karras" else "exponential"
    if theirs.class_name == "EDMEulerScheduler":
        return _converted(process, {"sampler": "euler", "steps": 50, "spacing": spacing}, where)
    sde = theirs.algorithm_type != "dpmsolver++"
    plan = {"sampler": "dpmpp_2m_sde" if sde else "dpmpp_2m", "steps": 20, "spacing": spacing}
    others = []
    if theirs.solver_order != 2:
        others.append(f"solver_order is 2 here, and not {theirs.solver_order}")
    if theirs.solver_type != "midpoint":
        others.append(f"solver_type is midpoint here, and not {theirs.solver_type}")
    return _converted(process, plan, where, *others)


def _flow(config: Mapping[str, Any], where: str) -> Converted:
    theirs = validate(FlowConfig, config, where)
    first = 1 / theirs.num_train_timesteps
    # Their least t is shifted when the scheduler is made, and once more, as all of them, when it is used.
    least = theirs.shift * first / (1 + (theirs.shift - 1) * first)
    process = {
        "kind": "flow",
        "prediction": "velocity",
        "variance": "fixed_small",
        "shift": theirs.shift,
        "sigma_min": least,
    }
    heun = theirs.class_name == "FlowMatchHeunDiscreteScheduler"
    plan = {"sampler": "heun", "steps": 27} if heun else {"sampler": "euler", "steps": 28}
    return _converted(process, {**plan, "spacing": "native"}, where)


def _scores(config: Mapping[str, Any], where: str) -> Converted:
    theirs = validate(ScoreConfig, config, where)
    process = {
        "kind": "ve",
        "prediction": "score",
        "variance": "fixed_small",
        "timesteps": theirs.num_train_timesteps,
        "time": "sigma",
        # Data in [0, 1] are half as far apart as ours in [-1, 1].
        "sigma_min": 2 * theirs.sigma_min,
        "sigma_max": 2 * theirs.sigma_max,
    }
    plan = {"sampler": "euler_maruyama", "steps": theirs.num_train_timesteps, "spacing": "native"}
    # The length of a correction depends on the network's output, which no table of numbers can say.
    corrections = f"it is sampled by the predictor alone: correct_steps {theirs.correct_steps} with snr {theirs.snr:g}"
    notes = [f"{corrections} are left out"] if theirs.correct_steps else []
    return _converted(process, plan, where, *notes)


def _converted(process: dict[str, Any], plan: dict[str, Any], where: str, *notes: str) -> Converted:
    sampling = {**plan, "clip": False}
    return validate(ProcessConfig, process, where), validate(SamplingConfig, sampling, where), notes


class _Family(NamedTuple):
    """Schedulers of one process."""

    classes: tuple[str, ...]
    convert: Callable[[Mapping[str, Any], str], Converted]


_FAMILIES = (
    _Family(("ScoreSdeVeScheduler",), _scores),
    _Family(("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"), _edm),
    _Family(("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"), _flow),
)
# (their configuration, what errors call it) → process, sampling plan, and in words what of it was not taken over.
CONTINUOUS: dict[str, Callable[[Mapping[str, Any], str], Converted]] = {
    name: family.convert for family in _FAMILIES for name in family.classes
}
