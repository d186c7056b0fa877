"""Every Gaussian process is one process in other coordinates (needs no library).

A process is x_t = a_t x_0 + σ_t ε. Divided by √(a_t² + σ_t²) it is variance preserving, with ᾱ_t = a_t²/(a_t² + σ_t²).
Schedules, samplers, executors and losses only know this scaled x, so they serve every process. Two processes differ in
their noise levels and in three things of the network, which this module has as tables:

- its input: input_scale · x, such as EDM's c_in x_t;
- its time, such as EDM's c_noise;
- what its output means: x̂_0 = x0_from_x · x + x0_from_out · output, such as EDM's c_skip and c_out.

The functions work on numpy arrays and on torch tensors. Their results are finite where no signal is left (ᾱ = 0),
except those of the predictions `epsilon` and `score`, which say nothing about x_0 there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Generic, NamedTuple, TypeVar

# numpy's or torch's arrays, or floats.
A = TypeVar("A", bound=Any)


class Level(NamedTuple, Generic[A]):
    """A noise level, or an array of them.

    Attributes:
        signal: √ᾱ.
        noise: √(1−ᾱ).
        log_ratio: ln(σ/a) = ln(noise/signal), minus half the logarithm of the signal-to-noise ratio.
    """

    signal: A
    noise: A
    log_ratio: A


# --- what the output means: of each prediction x̂_0 and the training target, as combinations


class Prediction(NamedTuple):
    """What a network may be asked for.

    Attributes:
        x0: (level, sigma_data) → coefficients of x and of the output in x̂_0.
        target: (level, sigma_data) → coefficients of x_0 and of ε in what the output is trained to be.
    """

    x0: Callable[[Level[Any], float], tuple[Any, Any]]
    target: Callable[[Level[Any], float], tuple[Any, Any]]


def _edm_scale(level: Level[A], sigma_data: float) -> Any:
    """√(σ² + σ_data²) in scaled coordinates, at a = 1: the standard deviation of scaled x, if σ_data is that of x_0."""
    return (level.noise**2 + sigma_data**2 * level.signal**2) ** 0.5


def _edm_x0(level: Level[A], sigma_data: float) -> tuple[Any, Any]:
    scale = _edm_scale(level, sigma_data)
    return sigma_data**2 * level.signal / scale**2, level.noise * sigma_data / scale


def _edm_target(level: Level[A], sigma_data: float) -> tuple[Any, Any]:
    """(x_0 − c_skip x)/c_out, with the subtraction done by hand: at little noise c_skip x is almost x_0."""
    scale = _edm_scale(level, sigma_data)
    return level.noise / (sigma_data * scale), -sigma_data * level.signal / scale


PREDICTIONS: dict[str, Prediction] = {
    # Ho et al. 2020.
    "epsilon": Prediction(
        lambda level, _: (1 / level.signal, -level.noise / level.signal),
        lambda level, _: (0 * level.signal, 0 * level.signal + 1),
    ),
    "x0": Prediction(
        lambda level, _: (0 * level.signal, 0 * level.signal + 1),
        lambda level, _: (0 * level.signal + 1, 0 * level.signal),
    ),
    # √ᾱ ε − √(1−ᾱ) x_0 (Salimans & Ho 2022).
    "v": Prediction(lambda level, _: (level.signal, -level.noise), lambda level, _: (-level.noise, level.signal)),
    # σ_t ∇ log p(x_t) = −ε: the score as NCSNv2 writes it, output over σ_t (Song & Ermon 2020, technique 3). Squared
    # error on it is NCSN's loss with the weight λ(σ) = σ² (Song & Ermon 2019, eq. 6).
    "score": Prediction(
        lambda level, _: (1 / level.signal, level.noise / level.signal),
        lambda level, _: (0 * level.signal, 0 * level.signal - 1),
    ),
    # F of Karras et al. 2022, table 1. Squared error on it is their loss with the weight λ(σ) = 1/c_out².
    "edm": Prediction(_edm_x0, _edm_target),
    # ε − x_0 along x_t = (1−t) x_0 + t ε (Liu et al. 2022; Lipman et al. 2022): x_0 = x_t − t v.
    "velocity": Prediction(
        lambda level, _: (1 / (level.signal + level.noise), -level.noise / (level.signal + level.noise)),
        lambda level, _: (0 * level.signal - 1, 0 * level.signal + 1),
    ),
}


# --- what the network is given


class Kind(NamedTuple):
    """A family of processes.

    Attributes:
        about: in a few words.
        numbers: those of `Coordinates` that it has, with their defaults; None: follows from the others. Among them may
            be `time`, a name.
        input_scale: (level, sigma_data) → coefficient of scaled x in the network's input.
        time: level → what the network is given as its time, a float. None: what `Coordinates.time` names.
        own_scale: level → √(a² + σ²), by which scaled x becomes the x in which the process goes straight from noise to
            data: that at a = 1, or a flow's x_t.
        ratio: (position in 0..1, numbers) → σ/a, of the levels from the least to the most noise. None: of betas.
    """

    about: str
    numbers: Mapping[str, float | str | None]
    input_scale: Callable[[Level[Any], float], Any]
    time: Callable[[Level[Any]], Any] | None
    own_scale: Callable[[Level[Any]], Any]
    ratio: Callable[[Any, Coordinates], Any] | None


def _geometric(position: Any, numbers: Coordinates) -> Any:
    return numbers.sigma_min * (numbers.sigma_max / numbers.sigma_min) ** position


def _by_rho(position: Any, numbers: Coordinates) -> Any:
    """Karras et al. 2022, eq. 5, upwards."""
    low, high = numbers.sigma_min ** (1 / numbers.rho), numbers.sigma_max ** (1 / numbers.rho)
    return (low + position * (high - low)) ** numbers.rho


def _by_time(position: Any, numbers: Coordinates) -> Any:
    """t/(1−t) at even times from the first to 1, times the shift of Esser et al. 2024, eq. 23; ∞ at t = 1."""
    t = numbers.sigma_min + position * (1 - numbers.sigma_min)
    return numbers.shift * t / (1 - t)


def _at_a_one(level: Level[A]) -> Any:
    return 1 / level.signal


def _flow_scale(level: Level[A]) -> Any:
    return 1 / (level.signal + level.noise)


# What a network may be given as its time instead, by the name in `process.time`. None: the number of the level, an
# integer.
TIMES: dict[str, Callable[[Level[Any]], Any] | None] = {
    "number": None,
    "sigma": lambda level: level.noise / level.signal,  # Song et al. 2021's continuous score models
}

TRAINING_TIMES = 1000  # what t in [0, 1] of a flow is multiplied by for the network, whose embedding is for 0..1000

KINDS: dict[str, Kind] = {
    "vp": Kind(
        "variance preserving: the betas of `schedule`",
        {},
        lambda level, _: 1 + 0 * level.signal,
        None,
        _at_a_one,
        None,
    ),
    # The network sees x_t itself, and the number of the level (Song & Ermon 2019) or σ.
    "ve": Kind(
        "variance exploding: x_t = x_0 + σ ε at geometric σ, as NCSN",
        {"sigma_min": 0.01, "sigma_max": 50.0, "time": "number"},
        lambda level, _: _at_a_one(level),
        None,
        _at_a_one,
        _geometric,
    ),
    # c_in and c_noise of Karras et al. 2022, table 1.
    "edm": Kind(
        "x_t = x_0 + σ ε at any σ, trained on a log-normal distribution of them",
        {
            "sigma_min": 0.002,
            "sigma_max": 80.0,
            "rho": 7.0,
            "log_sigma_mean": -1.2,
            "log_sigma_std": 1.2,
        },
        lambda level, sigma_data: 1 / _edm_scale(level, sigma_data),
        lambda level: level.log_ratio / 4,
        _at_a_one,
        _by_rho,
    ),
    # ln(t/(1−t)) is ln(σ/a), so that SD3's logit-normal t is the same distribution as EDM's log-normal σ.
    "flow": Kind(
        "rectified flow: x_t = (1−t) x_0 + t ε, trained on logit-normal t",
        {"sigma_min": None, "shift": 1.0, "log_sigma_mean": 0.0, "log_sigma_std": 1.0},
        lambda level, _: _flow_scale(level),
        lambda level: TRAINING_TIMES * level.noise / (level.signal + level.noise),
        _flow_scale,
        _by_time,
    ),
}


@dataclass(frozen=True)
class Coordinates:
    """The numbers of a process beside its levels; which of them a kind has is said in `KINDS`.

    Attributes:
        kind: one of `KINDS`.
        sigma_data: standard deviation of x_0, of the kind `edm` and of the prediction `edm`.
        sigma_min, sigma_max: the least and the most noise; of a flow sigma_min is the first t.
        rho: curvature of EDM's levels.
        shift: factor on a flow's σ/a.
        log_sigma_mean, log_sigma_std: of ln(σ/a) in training, which is normal there: log-normal σ of EDM, logit-normal
            t of a flow.
        time: what the network is given as its time, one of `TIMES`, where the kind leaves it open.
    """

    kind: str = "vp"
    sigma_data: float = 0.5
    sigma_min: float = math.nan
    sigma_max: float = math.nan
    rho: float = math.nan
    shift: float = math.nan
    log_sigma_mean: float = math.nan
    log_sigma_std: float = math.nan
    time: str = "number"

    @staticmethod
    def of(process: Mapping[str, Any]) -> Coordinates:
        """Those of a model's `process` section; what it does not say has the kind's default.

        Raises:
            ValueError: the kind or the time is unknown.
        """
        kind = process.get("kind") or "vp"
        if kind not in KINDS:
            raise ValueError(f"no process kind {kind!r:.50}; there are: {', '.join(KINDS)}")
        said = {field.name: process.get(field.name) for field in fields(Coordinates) if field.name != "kind"}
        numbers: dict[str, Any] = {**KINDS[kind].numbers}
        numbers |= {name: value for name, value in said.items() if value is not None}
        if (time := numbers.get("time", "number")) not in TIMES:
            raise ValueError(f"no process time {time!r:.50}; there are: {', '.join(TIMES)}")
        if kind == "flow" and numbers["sigma_min"] is None:
            numbers["sigma_min"] = 1 / process["timesteps"]
        return Coordinates(kind, **numbers)

    @property
    def network_time(self) -> Callable[[Level[Any]], Any] | None:
        """Level → what the network is given as its time, a float. None: the number of the level, an integer."""
        return KINDS[self.kind].time or TIMES[self.time]

    @property
    def continuous(self) -> bool:
        """Whether the network's time is a float, so that any noise level can be asked for; else levels have numbers."""
        return self.network_time is not None

    @property
    def distribution(self) -> tuple[float, float] | None:
        """Mean and standard deviation of ln(σ/a) in training; None: numbered levels are drawn."""
        return None if math.isnan(self.log_sigma_mean) else (self.log_sigma_mean, self.log_sigma_std)


DDPM = Coordinates()


class Preconditioning(NamedTuple, Generic[A]):
    """x̂_0 = x0_from_x · x + x0_from_out · network(input_scale · x, time), of scaled x.

    Attributes:
        time: None: the number of the level.
    """

    x0_from_x: A
    x0_from_out: A
    input_scale: A
    time: A | None


def preconditioning(prediction: str, level: Level[A], coordinates: Coordinates) -> Preconditioning[A]:
    """What a network of this prediction sees at a level, and what its output says of x_0.

    Raises:
        ValueError: the prediction is unknown.
    """
    time = coordinates.network_time
    x0_from_x, x0_from_out = _prediction(prediction).x0(level, coordinates.sigma_data)
    input_scale = KINDS[coordinates.kind].input_scale(level, coordinates.sigma_data)
    return Preconditioning(x0_from_x, x0_from_out, input_scale, None if time is None else time(level))


def target(prediction: str, level: Level[A], coordinates: Coordinates) -> tuple[A, A]:
    """Coefficients of x_0 and of ε in what the network is trained to say.

    Raises:
        ValueError: the prediction is unknown.
    """
    return _prediction(prediction).target(level, coordinates.sigma_data)


def _prediction(name: str) -> Prediction:
    if name not in PREDICTIONS:
        raise ValueError(f"no prediction {name!r}; there are: {', '.join(PREDICTIONS)}")
    return PREDICTIONS[name]
