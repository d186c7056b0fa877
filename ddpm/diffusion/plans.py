"""Sampling plans: a sampler is a table (numpy only).

Every sampler here is linear in what the network says, the current x and a fresh Gaussian z, so it is fully described
by one row of numbers a step. The executors run the same rows: torch (`diffusion.sampling`), numpy around onnxruntime
(`deploy.runtime`), and whatever else can multiply. A row says, of x that is scaled as `coordinates` says:

    out = network(input_scale · x, timestep)
    x0 = hold(x0_from_x · x + x0_from_out · out)
    x  = to_x0 · x0 + to_x · x + to_prev · x0' + to_prev2 · x0'' + to_noise · exp(log_noise_from_out · v) · z

- x0' and x0'' are the x0 of the row above and of the one above that (multistep samplers).
- v is the second half of the channels of a network that learns its variance; the first half is `out`. Everywhere else
  `log_noise_from_out` is 0, and the exponential is not computed.
- where `guidance`, a weight w, is not 0, `out` is guided: out + w (out − out of a weaker model), as
  `conditioning.guidance` says.
- where `mean_shift` is not 0, guidance leaves `out` alone and moves x instead, by mean_shift ·
  exp(2 log_noise_from_out · v) times the gradient of log p(y | input_scale · x): w Σ ∇_x log p(y | x_t).
- hold clamps to ±clip. An infinite x0 becomes NaN, since clamping would hide it. Where
  `quantile` is not 0 it thresholds dynamically (Saharia et al. 2022, §2.3): s, that
  quantile of the image's |x0| held in 1..clip, clamps to ±s, then divides.

Of data of which a part is known, each x0 has that in its place. A plan for RePaint also draws the known part of x anew
after each row, known_x0 · known + known_noise · z, and has rows that lead back into the noise: those whose
`x0_from_out` is 0 only scale x and add noise, and the network is not evaluated.

Of a model with a control (Zhang et al. 2023) a plan may weigh what the control adds: `control` has three numbers a row,
the columns of `conditioning.control_weights.ControlWeightsColumn`. A row of weight 0 does not evaluate the control.

ε̂ needs no column: it is the combination of x and x0 that the two satisfy together, already folded into `to_x` and
`to_x0`, and so it follows a clipped x0 as it should. Nor does a solver that goes back to an earlier x, or corrects the
present one: without noise an earlier x is itself a combination of the present one and the x0 between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddpm.diffusion.coordinates import preconditioning
from ddpm.diffusion.samplers import ONLY, SAMPLERS
from ddpm.diffusion.schedules import Float64, Schedule
from ddpm.diffusion.steps import LANGEVIN_STEPS, Choices, Steps

# What JSON and onnxruntime can both say; every image lies far inside it.
NO_CLIP = 1e30
MOST_GUIDANCE = 1000.0
MOST_STEPS = 200_000  # rows of a table
MOST_RESAMPLES, MOST_JUMP = 100, 1000
RESAMPLES, JUMP = 10, 10  # where none are asked for, as in the paper
MOST_CONTROL = 10.0
NO_PART = ("guide", "candidates")  # keys of `sampling` that are no part of a plan
GUESS_FACTOR = 0.825  # of guess mode, as in the code of Zhang et al. 2023


class Row(NamedTuple):
    """One step; the module's docstring says what each number does. A sampler leaves out what it has no use for."""

    x0_from_x: float
    x0_from_out: float
    clip: float
    quantile: float
    to_x0: float
    to_x: float
    to_prev: float
    to_prev2: float
    to_noise: float
    log_noise_from_out: float
    mean_shift: float
    guidance: float
    input_scale: float = 1.0
    # Of `SamplingPlan.known`.
    known_x0: float = 0.0
    known_noise: float = 0.0
    control: tuple[float, float, float] | None = None


COLUMNS = Row._fields[:-3]


@dataclass(frozen=True)
class SamplingPlan:
    """A sampler as a table.

    Attributes:
        timesteps: [S] int64, or float64 of a process in continuous time: the network's input t, first row first:
            descending, except to invert.
        table: [S, len(COLUMNS)] float64.
        known: [S, 2] float64, of each row `known_x0` and `known_noise`; None: the known part of x is drawn as the rest.
        control: [S, 3] float64, of each row the weights of a control; None: 1, as trained.
    """

    timesteps: NDArray[Any]
    table: Float64
    known: Float64 | None = None
    control: Float64 | None = None

    def __post_init__(self) -> None:
        if self.table.shape != (len(self.timesteps), len(COLUMNS)):
            raise ValueError(f"a plan of {len(self.timesteps)} steps needs a table of that many rows and {COLUMNS}")

    def __len__(self) -> int:
        return len(self.timesteps)

    @property
    def evaluations(self) -> int:
        """Of a network, for one datum: two at a step with guidance, none at one into the noise, else one."""
        return sum(int(np.count_nonzero(self.column(name))) for name in ("x0_from_out", "guidance"))

    @property
    def told(self) -> NDArray[Any]:
        """`timesteps` as exported networks take them: int64 or float32."""
        return self.timesteps if self.timesteps.dtype == np.int64 else self.timesteps.astype(np.float32)

    @property
    def control_rows(self) -> NDArray[np.float32]:
        """The weights of a control in each row, [S, 3]."""
        rows = np.ones((len(self), 3)) if self.control is None else self.control
        return np.ascontiguousarray(rows, np.float32)

    def column(self, name: str) -> Float64:
        """One named column, [S]."""
        return self.table[:, COLUMNS.index(name)]

    def rows(self) -> Iterator[tuple[int | float, Row]]:
        """(timestep, row) of every step; plain numbers, which leave the images' own precision alone."""
        known = np.zeros((len(self), 2)) if self.known is None else self.known
        weights = [None] * len(self) if self.control is None else [tuple(row) for row in self.control.tolist()]
        columns = (*self.table.T.tolist(), *known.T.tolist(), weights)
        for timestep, *values in zip(self.timesteps.tolist(), *columns, strict=True):
            yield timestep, Row(*values)


# --- plans


def sampling_plan(
    schedule: Schedule,
    *,
    sampler: str,
    steps: int,
    prediction: str,
    variance: str,
    spacing: str = "trailing",
    eta: float = 0.0,
    churn: float = 0.0,
    churn_interval: Sequence[float] | None = None,
    churn_noise: float = 1.0,
    langevin_steps: int = LANGEVIN_STEPS,
    langevin_epsilon: float | None = None,
    clip: bool = True,
    clip_range: float | None = None,
    dynamic_threshold: float | None = None,
    guidance_scale: float = 1.0,
    guidance_interval: Sequence[float] | None = None,
    by_classifier: bool = False,
    inpainting: str = "replace",
    resamples: int = RESAMPLES,
    jump: int = JUMP,
    control_scale: float = 1.0,
    control_interval: Sequence[float] | None = None,
    guess: bool = False,
) -> SamplingPlan:
    """The table of a named sampler on some of the schedule's T levels.

    Args:
        sampler: one of `SAMPLERS`.
        steps: rows, which are evaluations of the network: one for each level that is visited, but of `heun` two for all
            but the last, and of `langevin` as many as `langevin_steps` and one at the end.
        prediction: what the network outputs, one of `coordinates.PREDICTIONS`.
        variance: of the ancestral sampler, one of `VARIANCES`; `learned_range` needs a network that learned it.
        spacing: which levels are visited, see `schedules.SPACINGS` and `NOISE_SPACINGS`.
        eta: DDIM's share of noise, 0..1.
        churn, churn_interval, churn_noise: of `heun`, see `steps.Choices`.
        langevin_steps, langevin_epsilon: of `langevin`, see there too.
        clip: hold x̂_0 in [−1, 1], or in ±`clip_range`.
        dynamic_threshold: in place of `clip`, dynamic thresholding at this quantile of |x̂_0|, in (0, 1]; Imagen's is
            0.995.
        guidance_scale: s ≥ 0. With a weaker model, or the model without its condition, the weight w is s − 1: 1 is
            none, 0 is the weaker model. With a classifier w is s itself, what multiplies its gradient: 0 is none.
        guidance_interval: shares of the process, 0: data, 1: noise, between which the scale holds; elsewhere there is
            no guidance (Kynkäänniemi et al. 2024). None: everywhere.
        by_classifier: whether guidance is by a classifier. The ancestral sampler then moves its mean by s Σ times the
            gradient (Dhariwal & Nichol 2021, algorithm 1), the others ε̂ (algorithm 2).
        inpainting: one of `INPAINTING`, of data of which a part is known.
        resamples: of `repaint`, how many times each group of `jump` steps is run, ≥ 1.
        jump: of `repaint`, the steps in such a group, ≥ 1; fewer than `steps`, unless `resamples` is 1.
        control_scale: of a model with a control: the weight of what that adds, 0: none.
        control_interval: shares of the process, as `guidance_interval`, between which there is a control.
        guess: the control's guess mode: the weight falls with each level from the bottom up, and guidance moves away
            from the model without its condition and without the control (Zhang et al. 2023).

    Raises:
        ValueError: a name is unknown, or a number out of its range.
    """
    if clip_range is not None and not clip_range > 0:
        raise ValueError(f"clip_range must be above 0, found {clip_range}")
    if sampler not in SAMPLERS:
        raise ValueError(f"no sampler {sampler!r}; there are: {', '.join(SAMPLERS)}")
    if dynamic_threshold is not None and not 0 < dynamic_threshold <= 1:
        raise ValueError(f"dynamic_threshold must be in (0, 1], found {dynamic_threshold}")
    if steps > MOST_STEPS:
        raise ValueError(f"steps must be in 1..{MOST_STEPS}, found {steps}")
    asked = Choices(steps, variance, eta, churn, churn_interval, churn_noise, langevin_steps, langevin_epsilon)
    visited = schedule.visited(SAMPLERS[sampler].levels(asked), spacing)
    with np.errstate(divide="ignore", invalid="ignore"):  # where no signal is left, as is found out below
        columns, levels, index = SAMPLERS[sampler].steps(visited, asked)
    columns["clip"] = np.full(steps, (clip_range or 1.0) if clip and dynamic_threshold is None else NO_CLIP)
    columns["quantile"] = np.full(steps, dynamic_threshold or 0.0)
    unguided = unguided_scale(by_classifier)
    columns["guidance"] = _guidance(schedule.places(levels), guidance_scale, guidance_interval, unguided)[index]
    columns["mean_shift"] = columns.get("mean_shift", np.zeros(steps)) * (columns["guidance"] if by_classifier else 0.0)
    ascending = _plan(Steps(columns, levels, index), prediction)
    if not np.isfinite(ascending.table).all():
        raise ValueError(
            f"sampler {sampler} with prediction {prediction} cannot begin where no signal is left; the spacings karras "
            "and exponential begin below that"
        )
    control = _control(schedule.places(levels)[index], control_scale, control_interval, guess)
    plan = SamplingPlan(ascending.timesteps[::-1].copy(), ascending.table[::-1].copy(), control=control)
    if inpainting not in INPAINTING:
        raise ValueError(f"no inpainting {inpainting!r}; there are: {', '.join(INPAINTING)}")
    return INPAINTING[inpainting].plan(plan, visited, resamples, jump)


def replace(plan: SamplingPlan, visited: Schedule, resamples: int, jump: int) -> SamplingPlan:
    """The plan as it is: what is known has its place in each x̂_0, and so it is denoised with the rest."""
    return plan


def repaint(plan: SamplingPlan, visited: Schedule, resamples: int, jump: int) -> SamplingPlan:
    """RePaint (Lugmayr et al. 2022, algorithm 1 and §4.2): after each row the known part of x is q(x_t | x_0), and
    after every `jump` rows x goes back into the noise by as many steps, `resamples` − 1 times, so that what is drawn
    gets to fit what is known.

    Args:
        plan: of a sampler.
        visited: the timesteps as a schedule.

    Raises:
        ValueError: a number is out of its range, no step would be repeated, the sampler goes by an earlier x̂_0, which
            is of another x then, or it visits a level twice.
    """
    if len(plan) != len(visited) or plan.column("to_prev").any() or plan.column("to_prev2").any():
        raise ValueError("inpainting repaint needs a sampler without memory: use ancestral or ddim")
    for name, value, most in (("resamples", resamples, MOST_RESAMPLES), ("jump", jump, MOST_JUMP)):
        if not 1 <= value <= most:
            raise ValueError(f"{name} must be in 1..{most}, found {value}")
    if resamples > 1 and not _stops(len(plan), jump):
        raise ValueError(f"inpainting repaint needs more steps than jump, found {len(plan)} steps and jump {jump}")
    index, back = (np.array(column) for column in zip(*_way(len(plan), resamples, jump), strict=True))
    before, after = visited.alphas_cumprod[index], visited.alphas_cumprod_prev[index]
    into_noise = {"to_x": np.sqrt(before / after), "to_noise": np.sqrt(1 - before / after)}
    rows = np.stack([into_noise.get(name, np.zeros(len(index))) for name in COLUMNS], axis=1)
    table = np.where(back[:, None], rows, plan.table[len(plan) - 1 - index])
    reached = np.where(back, before, after)
    known = np.stack([np.sqrt(reached), np.sqrt(1 - reached)], axis=1)
    control = None if plan.control is None else plan.control[len(plan) - 1 - index]
    return SamplingPlan(visited.timesteps[index], table, known, control)


def repaint_evaluations(steps: int, resamples: int, jump: int) -> int:
    """Evaluations of the network in a plan for `repaint` without guidance. Of a plan that would be too long it says so
    without building it.
    """
    return steps + len(_stops(steps, jump)) * jump * (resamples - 1)


def _stops(steps: int, jump: int) -> range:
    """How many steps there are to go where x turns round."""
    return range(1, steps - jump + 1, jump)


def _way(steps: int, resamples: int, jump: int) -> Iterator[tuple[int, bool]]:
    """Of each row the visited timestep, counted from 0, that x leaves; or, with True, that it goes back to."""
    stops = _stops(steps, jump)
    for number in reversed(range(steps)):
        yield number, False
        if number in stops:
            part = range(number, number + jump)
            for _ in range(resamples - 1):
                yield from ((there, True) for there in part)
                yield from ((there, False) for there in reversed(part))


class Inpainting(NamedTuple):
    """What becomes of a plan for data of which a part is known.

    Attributes:
        plan: (plan, visited timesteps, resamples, jump) → plan.
        evaluations: (steps, resamples, jump) → evaluations of the network in that plan, without guidance.
    """

    plan: Callable[[SamplingPlan, Schedule, int, int], SamplingPlan]
    evaluations: Callable[[int, int, int], int]


INPAINTING: dict[str, Inpainting] = {
    "replace": Inpainting(replace, lambda steps, resamples, jump: steps),
    "repaint": Inpainting(repaint, repaint_evaluations),
}


def unguided_scale(by_classifier: bool) -> float:
    """The guidance scale that is no guidance: 0 along a classifier's gradient, 1 away from a weaker model."""
    return 0.0 if by_classifier else 1.0


def _guidance(places: Float64, scale: float, interval: Sequence[float] | None, unguided: float) -> Float64:
    """The weight at each place in the process, [S]; `unguided` is the scale without guidance."""
    if not 0 <= scale <= MOST_GUIDANCE:
        raise ValueError(f"guidance_scale must be in 0..{MOST_GUIDANCE:g}, found {scale}")
    return np.where(_within("guidance_interval", interval, places), scale - unguided, 0.0)


def _within(key: str, interval: Sequence[float] | None, places: Float64) -> NDArray[np.bool_]:
    """Which places in the process lie between two shares of it, [S]; None: all."""
    low, high = (0.0, 1.0) if interval is None else interval
    if not 0 <= low <= high <= 1:
        raise ValueError(f"{key} must be two shares, 0 <= low <= high <= 1, found {low}, {high}")
    return (places >= low) & (places <= high)


def _control(places: Float64, scale: float, interval: Sequence[float] | None, guess: bool) -> Float64 | None:
    """`SamplingPlan.control`, first row first.

    Args:
        places: of the rows in the process, ascending.
    """
    if not 0 <= scale <= MOST_CONTROL:
        raise ValueError(f"control_scale must be in 0..{MOST_CONTROL:g}, found {scale}")
    weights = np.where(_within("control_interval", interval, places), float(scale), 0.0)[::-1]
    if not guess and (weights == 1).all():
        return None
    factor = GUESS_FACTOR if guess else 1.0
    return np.stack([weights, weights * (not guess), np.full(len(weights), factor)], axis=1)


def inversion_plan(schedule: Schedule, *, steps: int, prediction: str, spacing: str = "trailing") -> SamplingPlan:
    """The deterministic DDIM table run upwards: from an image to the x_T that it comes of (Song et al. 2021, §4.3).

    A row leads back from ᾱ' to ᾱ: x = √(ᾱ/ᾱ') x' + (√(1−ᾱ) − √(ᾱ(1−ᾱ')/ᾱ')) ε̂. It takes the network's word at the x'
    it comes from for that at the x it goes to, which is all that keeps it from being the exact inverse; nothing is
    clipped, because that could not be undone.

    Args:
        steps, prediction, spacing: of the DDIM plan that is inverted.

    Raises:
        ValueError: a name is unknown, or a number out of its range.
    """
    visited = schedule.visited(steps, spacing)
    alpha_bar, alpha_bar_prev = visited.alphas_cumprod, visited.alphas_cumprod_prev
    scale = np.sqrt(alpha_bar / alpha_bar_prev)
    to_epsilon = np.sqrt(1 - alpha_bar) - scale * np.sqrt(1 - alpha_bar_prev)
    # ε̂ = (x' − √ᾱ x̂_0)/√(1−ᾱ), folded into the coefficients of x' and x̂_0.
    columns = {
        "to_x0": -to_epsilon * np.sqrt(alpha_bar / (1 - alpha_bar)),
        "to_x": scale + to_epsilon / np.sqrt(1 - alpha_bar),
        "clip": np.full(steps, NO_CLIP),
    }
    return _plan(Steps(columns, visited, np.arange(steps)), prediction)


def _plan(steps: Steps, prediction: str) -> SamplingPlan:
    """Rows in ascending t as a plan that runs upwards."""
    columns, levels, index = steps
    with np.errstate(divide="ignore", invalid="ignore"):
        told = preconditioning(prediction, levels.level, levels.coordinates)
    own = {"x0_from_x": told.x0_from_x, "x0_from_out": told.x0_from_out, "input_scale": told.input_scale}
    columns = {**{name: values[index] for name, values in own.items()}, **columns}
    columns["mean_shift"] = columns.get("mean_shift", np.zeros(len(index))) * columns["input_scale"]
    table = np.stack([columns.get(name, np.zeros(len(index))) for name in COLUMNS], axis=1)
    return SamplingPlan(levels.timesteps[index], table)


def plan_for(
    process: Mapping[str, Any],
    sampling: Mapping[str, Any],
    *,
    by_classifier: bool = False,
    bounded: bool = True,
    **overrides: Any,
) -> SamplingPlan:
    """The plan of a model's configuration, with the overrides that are not None in place of its own choices.

    An override that the sampler does not use is refused. (In the configuration such options have defaults.)

    Args:
        process: as in params.yaml: `timesteps`, `prediction`, `variance`, `schedule` with an explicit one's `betas`,
            or another `kind` with its numbers.
        sampling: the other arguments of `sampling_plan`, as in params.yaml; `variance` None is the process's own. It
            may have the keys of `NO_PART` too.
        by_classifier: as for `sampling_plan`; what `sampling` calls the guide says whose, not how.
        bounded: whether x_0 lies in [−1, 1]. If not, as of latents, nothing is clipped unless `sampling` has a
            `clip_range`.

    Raises:
        ValueError: a name is unknown, a number out of its range, an override is of no use, or a learned variance is
            asked of a network without one.
    """
    asked = {key: value for key, value in overrides.items() if value is not None}
    given = {key: value for key, value in {**sampling, **asked}.items() if key not in NO_PART}
    _refuse_unused(asked, given, unguided_scale(by_classifier))
    if bounded and "clip_range" in asked and given.get("clip") is False:
        raise ValueError("clip_range is what clip clips to, and clip is false; leave clip_range out")
    if not bounded:
        _refuse_bounds(asked, given)
        given["clip"] = given.get("clip_range") is not None
    chosen = {"variance": process["variance"], **{key: value for key, value in given.items() if value is not None}}
    if chosen["variance"] == "learned_range" and process["variance"] != "learned_range":
        raise ValueError(f"variance is learned_range, but the network was trained with {process['variance']}")
    return sampling_plan(Schedule.of(process), prediction=process["prediction"], by_classifier=by_classifier, **chosen)


def _refuse_bounds(asked: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError: x_0 would be held in [−1, 1], as the latents of an autoencoder are not.
    """
    for name, found in (("clip", asked.get("clip")), ("dynamic_threshold", given.get("dynamic_threshold"))):
        if found:
            raise ValueError(f"{name} holds x0 in [-1, 1], which latents are not in; leave {name} out")


def _refuse_unused(asked: Mapping[str, Any], given: Mapping[str, Any], unguided: float) -> None:
    """
    Args:
        asked: the overrides.
        given: all choices, overrides and the model's own.
        unguided: the guidance scale that is no guidance.

    Raises:
        ValueError: an override decides nothing about the plan.
    """
    sampler = given["sampler"]
    for name, only in ONLY.items():
        if name in asked and sampler in SAMPLERS and sampler != only:
            whose = "the sampler" if "sampler" in asked else "the model's own sampler"
            raise ValueError(f"{name} is used by the sampler {only} alone, and {whose} is {sampler}; leave {name} out")
    for name in ("clip", "clip_range"):
        if name in asked and given.get("dynamic_threshold") is not None:
            raise ValueError(f"dynamic_threshold takes the place of clip; leave {name} out")
    for name in ("resamples", "jump"):
        if name in asked and given.get("inpainting") != "repaint":
            raise ValueError(f"{name} is used by inpainting repaint alone; leave {name} out")
    if "guidance_interval" in asked and given.get("guidance_scale", 1.0) == unguided:
        raise ValueError(
            f"guidance_interval is not used at guidance_scale {unguided:g}, which is no guidance: set guidance_scale "
            "or leave guidance_interval out"
        )


def decisive_choices(sampling: Mapping[str, Any], *, variance: str) -> dict[str, Any]:
    """What of a model's `sampling` section decides its plan: the variance that is meant, and None for what the sampler,
    or dynamic thresholding, makes no use of. Without guidance its keys are left out, without a guide that, and of the
    samplers `heun` and `langevin` those that another has no use for.

    Args:
        sampling: the whole section, as in params.yaml.
        variance: of the model's process.
    """
    meant = {**sampling, "variance": sampling["variance"] or variance}
    unused = {name for name, only in ONLY.items() if only != sampling["sampler"]}
    if sampling["dynamic_threshold"] is not None:
        unused.add("clip")
    if meant.get("guide") is None:
        meant.pop("guide", None)
    if "guide" not in meant and meant.get("guidance_scale", 1) == 1:  # as before there was guidance
        meant = {name: value for name, value in meant.items() if not name.startswith("guidance_")}
    # As of models without a control, and of others than priors.
    as_trained = {"control_scale": 1, "control_interval": None, "guess": False, "candidates": 1, "clip_range": None}
    meant = {name: value for name, value in meant.items() if name not in as_trained or value != as_trained[name]}
    meant = {name: value for name, value in meant.items() if name not in unused - {"variance", "eta", "clip"}}
    return {name: None if name in unused else value for name, value in meant.items()}
