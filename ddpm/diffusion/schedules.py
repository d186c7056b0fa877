"""Noise schedules: β_t for t in 0..T-1 and what follows from them, computed in float64 (numpy only).

The papers count t from 1 to T; the code counts from 0, so `betas[0]` is the papers' β_1. Processes that are not
variance preserving have a schedule too, that of scaled x: see `coordinates`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.diffusion.coordinates import DDPM, KINDS, Coordinates, Level

Float64 = NDArray[np.float64]
MOST_TIMESTEPS = 100_000
VARIANCES = ("fixed_large", "fixed_small", "learned_range")  # of a reverse step


def linear_betas(timesteps: int) -> Float64:
    """β from 1e-4 to 0.02 in equal steps (Ho et al. 2020, §4); for T ≠ 1000 both ends scale by 1000/T.

    Shape [T]. Below about T = 20 the scaled end would pass 1 and is held at 0.999.
    """
    scale = 1000 / timesteps
    return np.minimum(np.linspace(1e-4 * scale, 0.02 * scale, timesteps, dtype=np.float64), 0.999)


def cosine_betas(timesteps: int) -> Float64:
    """β of the cosine ᾱ (Nichol & Dhariwal 2021, eq. 17), offset s = 0.008, clipped at 0.999. Shape [T]."""
    grid = np.arange(timesteps + 1, dtype=np.float64) / timesteps
    alpha_bar = np.cos((grid + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)


def scaled_linear_betas(timesteps: int) -> Float64:
    """β linear in its square root from 0.00085 to 0.012 (Rombach et al. 2022, latent diffusion). Shape [T]."""
    return np.linspace(0.00085**0.5, 0.012**0.5, timesteps, dtype=np.float64) ** 2


def sigmoid_betas(timesteps: int) -> Float64:
    """β of a sigmoid ᾱ from −3 to 3 (Jabri et al. 2022, fig. 8), clipped at 0.999. Shape [T]."""
    alpha_bar = 1 / (1 + np.exp(np.linspace(-3, 3, timesteps + 1, dtype=np.float64)))
    alpha_bar = (alpha_bar - alpha_bar[-1]) / (alpha_bar[0] - alpha_bar[-1])
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)


SCHEDULES: dict[str, Callable[[int], Float64]] = {
    "linear": linear_betas,
    "cosine": cosine_betas,
    "scaled_linear": scaled_linear_betas,
    "sigmoid": sigmoid_betas,
}


@dataclass(frozen=True)
class Schedule:
    """The betas of a forward process and every table that follows from them (Ho et al. 2020, §2).

    Attributes:
        betas: [T] float64 in (0, 1). The last may be 1, after which no signal is left: ᾱ_T = 0 (Lin et al. 2024).
        timesteps: [T], the network's input t at each row: int64, after respacing the original t; or float64, of a
            process in continuous time.
        coordinates: of the process.
    """

    betas: Float64
    timesteps: NDArray[Any]
    coordinates: Coordinates = DDPM

    @staticmethod
    def named(name: str, timesteps: int) -> Schedule:
        """One of `SCHEDULES` with T = `timesteps`."""
        if not 1 <= timesteps <= MOST_TIMESTEPS:
            raise ValueError(f"timesteps must be in 1..{MOST_TIMESTEPS}, found {timesteps}")
        if name not in SCHEDULES:
            raise ValueError(f"no schedule {name!r}; there are: {', '.join(SCHEDULES)}")
        return Schedule(SCHEDULES[name](timesteps), np.arange(timesteps, dtype=np.int64))

    @staticmethod
    def of(process: Mapping[str, Any]) -> Schedule:
        """The schedule of a model's `process` section: of variance preserving ones its own betas where it has them,
        else those of the name; of the other kinds T levels, which in continuous time are only for sampling.

        Raises:
            ValueError: a name is unknown, or the betas are no process of that many steps.
        """
        betas, timesteps, coordinates = process.get("betas"), process["timesteps"], Coordinates.of(process)
        if (ratio := KINDS[coordinates.kind].ratio) is not None:
            return Schedule.at_ratios(_at_positions(ratio, timesteps, coordinates), coordinates)
        if betas is None:
            return replace(Schedule.named(process["schedule"], timesteps), coordinates=coordinates)
        if len(betas) != timesteps:
            raise ValueError(f"betas has {len(betas)} numbers for {timesteps} timesteps")
        return Schedule(np.asarray(betas, dtype=np.float64), np.arange(timesteps, dtype=np.int64), coordinates)

    @staticmethod
    def at_ratios(ratios: Float64, coordinates: Coordinates) -> Schedule:
        """The process whose levels are those where σ/a is `ratios` [S], ascending; the last may be ∞."""
        squares = ratios**2
        with np.errstate(invalid="ignore"):
            betas = np.diff(squares, prepend=0.0) / (1 + squares)
        numbers = np.arange(len(ratios), dtype=np.int64)
        schedule = Schedule(np.where(np.isinf(ratios), 1.0, betas), numbers, coordinates)
        time = coordinates.network_time
        return schedule if time is None else replace(schedule, timesteps=time(schedule.level))

    def __post_init__(self) -> None:
        betas = self.betas
        if betas.ndim != 1 or not (np.all(betas > 0) and np.all(betas[:-1] < 1) and np.all(betas[-1:] <= 1)):
            raise ValueError("betas must be one-dimensional and inside (0, 1); only the last may be 1")

    def __len__(self) -> int:
        return len(self.betas)

    @property
    def level(self) -> Level[Float64]:
        """√ᾱ, √(1−ᾱ) and ln(σ/a) of each row, [T]."""
        signal, noise = np.sqrt(self.alphas_cumprod), np.sqrt(1 - self.alphas_cumprod)
        with np.errstate(divide="ignore"):
            return Level(signal, noise, np.log(noise) - np.log(signal))

    @cached_property
    def alphas_cumprod(self) -> Float64:
        """ᾱ_t = ∏_{s≤t} (1 − β_s), [T]."""
        return np.cumprod(1 - self.betas, dtype=np.float64)

    @cached_property
    def alphas_cumprod_prev(self) -> Float64:
        """ᾱ_{t−1}, with ᾱ before the first step 1, [T]."""
        return np.append(1.0, self.alphas_cumprod[:-1])

    @cached_property
    def posterior_variance(self) -> Float64:
        """β̃_t = (1−ᾱ_{t−1})/(1−ᾱ_t) β_t, [T]; 0 at t = 0 (eq. 7)."""
        return (1 - self.alphas_cumprod_prev) / (1 - self.alphas_cumprod) * self.betas

    @cached_property
    def posterior_log_variance_clipped(self) -> Float64:
        """log β̃_t with the value at t = 1 standing in at t = 0, where β̃ is 0, [T]."""
        if len(self) == 1:
            return np.log(self.betas)
        clipped = self.posterior_variance.copy()
        clipped[0] = clipped[1]
        return np.log(clipped)

    @cached_property
    def posterior_mean_coef_x0(self) -> Float64:
        """Coefficient of x_0 in μ̃_t, [T] (eq. 7)."""
        return np.sqrt(self.alphas_cumprod_prev) * self.betas / (1 - self.alphas_cumprod)

    @cached_property
    def posterior_mean_coef_xt(self) -> Float64:
        """Coefficient of x_t in μ̃_t, [T] (eq. 7)."""
        return np.sqrt(1 - self.betas) * (1 - self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)

    def respaced(self, kept: NDArray[np.int64]) -> Schedule:
        """The process that visits only the rows `kept` (ascending) of this one (Nichol & Dhariwal 2021, §4).

        β_{S_i} = 1 − ᾱ_{S_i}/ᾱ_{S_{i−1}}; the network goes on seeing the original t.
        """
        if len(kept) == 0 or np.any(np.diff(kept) <= 0) or kept[0] < 0 or kept[-1] >= len(self):
            raise ValueError(f"kept steps must ascend within 0..{len(self) - 1}")
        alpha_bar = self.alphas_cumprod[kept]
        betas = 1 - alpha_bar / np.append(1.0, alpha_bar[:-1])
        # A step over which hardly any signal is left would round to 1.
        return Schedule(np.minimum(betas, np.nextafter(1.0, 0.0)), self.timesteps[kept], self.coordinates)

    def visited(self, steps: int, spacing: str) -> Schedule:
        """The process at `steps` of its levels.

        Args:
            spacing: one of `SPACINGS`, counts, or one of `NOISE_SPACINGS`. The latter are exact of a process in
                continuous time; of another they choose the nearest of its levels.

        Raises:
            ValueError: as `spaced_timesteps`.
        """
        if spacing not in NOISE_SPACINGS:
            return self._at(spaced_timesteps(len(self), steps, spacing))
        _check_steps(len(self), steps)
        wanted = NOISE_SPACINGS[spacing](self, steps)
        if self.coordinates.continuous:
            return Schedule.at_ratios(wanted, self.coordinates)
        apart = np.abs(self.level.log_ratio[:, None] - np.log(wanted))
        return self.respaced(_distinct(apart.argmin(0), len(self)))

    def _at(self, kept: NDArray[np.int64]) -> Schedule:
        """`respaced`, which of a process in continuous time keeps a last level without signal as it is."""
        if not self.coordinates.continuous:
            return self.respaced(kept)
        return Schedule.at_ratios(np.exp(self.level.log_ratio[kept]), self.coordinates)

    def places(self, visited: Schedule) -> Float64:
        """Where in this whole process the rows of a part of it are, in (0, 1]: 1 is noise. [S]."""
        if not self.coordinates.continuous:
            return (visited.timesteps + 1) / len(self)
        return np.interp(visited.level.log_ratio, self.level.log_ratio, np.arange(1, len(self) + 1) / len(self))


def _at_positions(ratio: Callable[[Any, Coordinates], Any], count: int, coordinates: Coordinates) -> Float64:
    """σ/a at `count` even positions from the first level to the last; at the last alone if it is one."""
    with np.errstate(divide="ignore"):
        return ratio(np.linspace(0, 1, count) if count > 1 else np.ones(1), coordinates)


# --- which levels a sampler visits


def _leading(total: int, steps: int) -> Float64:
    return np.arange(steps, dtype=np.float64) * (total // steps)


def _trailing(total: int, steps: int) -> Float64:
    return np.round(np.arange(1, steps + 1) * (total / steps)) - 1


def _linspace(total: int, steps: int) -> Float64:
    return np.round(np.linspace(0, total - 1, steps)) if steps > 1 else np.array([total - 1.0])


def _even(total: int, steps: int) -> Float64:
    # A running sum and not a product: at a stride such as 49.95 the sum ends below 999.5, and 999 is not visited.
    stride = (total - 1) / (steps - 1) if steps > 1 else 1.0
    return np.round(np.cumsum([0.0, *[stride] * (steps - 1)]))


def _quadratic(total: int, steps: int) -> Float64:
    return np.floor(np.linspace(0, np.sqrt(total * 0.8), steps) ** 2) if steps > 1 else np.floor([total * 0.8])


SPACINGS: dict[str, Callable[[int, int], Float64]] = {
    # DDIM's integer stride ⌊T/S⌋ from 0. Where S does not divide T, diffusers' code visits these, and the code of
    # Song et al. goes on with the same stride, which makes more than S steps.
    "leading": _leading,
    "trailing": _trailing,  # equal strides that end on T-1 (Lin et al. 2024, table 2)
    "linspace": _linspace,  # equal strides from 0 to T-1, rounded once; T-1 where S is 1
    # The same strides as improved-diffusion's code adds them up (`space_timesteps`): its rounding errors make another
    # choice by one step for more than a quarter of all S. 0 where S is 1.
    "even": _even,
    # DDIM's for CIFAR-10 (Song et al. 2021, appendix D.2), from 0 to 0.8 T. Their code visits a step twice where two
    # strides round to the same one; here the second moves on to the next free step.
    "quadratic": _quadratic,
}


def _native(schedule: Schedule, steps: int) -> Float64:
    ratio = KINDS[schedule.coordinates.kind].ratio
    if ratio is not None:
        return _at_positions(ratio, steps, schedule.coordinates)
    return np.exp(schedule.level.log_ratio[spaced_timesteps(len(schedule), steps, "linspace")])


def _ends(schedule: Schedule) -> tuple[float, float]:
    """The least and the most noise σ/a that is finite."""
    ratios = np.exp(schedule.level.log_ratio)
    return float(ratios[0]), float(ratios[np.isfinite(ratios)][-1])


def _karras(schedule: Schedule, steps: int) -> Float64:
    low, high = _ends(schedule)
    return np.linspace(low ** (1 / RHO), high ** (1 / RHO), steps) ** RHO if steps > 1 else np.array([high])


def _exponential(schedule: Schedule, steps: int) -> Float64:
    low, high = _ends(schedule)
    return np.geomspace(low, high, steps) if steps > 1 else np.array([high])


RHO = 7.0  # of the spacing `karras`

# (schedule, S) → σ/a of the visited levels, ascending, [S].
NOISE_SPACINGS: dict[str, Callable[[Schedule, int], Float64]] = {
    "native": _native,  # the process's own: even in t of a flow, in σ^(1/ρ) of EDM, in ln σ of NCSN, in t of the betas
    "karras": _karras,  # even in σ^(1/7) (Karras et al. 2022, eq. 5)
    "exponential": _exponential,  # even in ln σ
}


def spaced_timesteps(total: int, steps: int, spacing: str) -> NDArray[np.int64]:
    """The S of T rows that a sampler visits, ascending, [S] int64.

    Args:
        spacing: one of `SPACINGS`, or counts such as "10,10,20": T is divided into so many sections of equal length,
            the first that of the smallest t, and so many steps are spaced evenly in each (Nichol & Dhariwal 2021's
            code, `timestep_respacing`).

    Raises:
        ValueError: the spacing is unknown, or S is not in 1..T, or not the sum of the counts, or a section has fewer
            timesteps than steps. Strides that would visit a row twice move on to the next free one.
    """
    counts = section_counts(spacing)
    if not counts and (not isinstance(spacing, str) or spacing not in SPACINGS):
        names = ", ".join((*SPACINGS, *NOISE_SPACINGS))
        raise ValueError(f"no spacing {spacing!r}; there are: {names}, and counts of sections such as 10,10,20")
    _check_steps(total, steps)
    if counts:
        return _in_sections(total, steps, counts)
    return _distinct(SPACINGS[spacing](total, steps).astype(np.int64), total)


def _check_steps(total: int, steps: int) -> None:
    if not 1 <= steps <= total:
        raise ValueError(f"steps must be in 1..{total}, the process's timesteps; found {steps}")


def _distinct(kept: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """Strictly ascending from below, then pushed back under T from above: both keep S distinct rows."""
    offsets = np.arange(len(kept))
    kept = np.maximum.accumulate(kept - offsets) + offsets
    return np.minimum(kept, total - len(kept) + offsets)


def section_counts(spacing: str) -> list[int]:
    """The counts that a spacing such as "10,10,20" names; none of a spacing that has another name."""
    words = spacing.split(",") if isinstance(spacing, str) else []  # a damaged file may have anything here
    decimal = all(word.isascii() and word.isdigit() and len(word) < 10 for word in words)
    return [int(word) for word in words] if decimal else []


def _in_sections(total: int, steps: int, counts: list[int]) -> NDArray[np.int64]:
    if sum(counts) != steps:
        raise ValueError(f"spacing {','.join(map(str, counts))} has {sum(counts)} steps, but steps is {steps}")
    sizes = [total // len(counts) + (section < total % len(counts)) for section in range(len(counts))]
    kept: list[NDArray[np.int64]] = []
    for section, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        if count > size:
            raise ValueError(f"spacing: a section of {size} timesteps cannot have {count} steps")
        kept.append((sum(sizes[:section]) + _even(size, count)[:count]).astype(np.int64))
    return np.concatenate(kept)
