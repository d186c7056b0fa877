"""The Gaussian process in torch: q, its posterior, and the reverse step's moments.

x is [N, C, ...], scaled as `coordinates` says; t is [N] int64 in 0..T-1, or in continuous time also ln(σ/a) as a float;
out is what the network says of (x_t, t), shaped like x, or [N, 2C, ...] where it learns the variance too.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpm.diffusion.coordinates import Level, preconditioning, target
from ddpm.diffusion.schedules import VARIANCES, Float64, Schedule


class Coefficients(NamedTuple):
    """Of the process and the network at each level, [T], or [N] at t.

    Attributes:
        signal, noise: √ᾱ and √(1−ᾱ).
        x0_from_x, x0_from_out, input_scale, time: as of `coordinates.preconditioning`.
        target_from_x0, target_from_noise: as of `coordinates.target`.
    """

    signal: Tensor
    noise: Tensor
    x0_from_x: Tensor
    x0_from_out: Tensor
    input_scale: Tensor
    time: Tensor
    target_from_x0: Tensor
    target_from_noise: Tensor


class GaussianProcess:
    """q(x_t | x_0) and p_θ(x_{t−1} | x_t) for one schedule, one prediction target and one kind of variance."""

    def __init__(
        self,
        schedule: Schedule,
        *,
        prediction: str = "epsilon",
        variance: str = "fixed_large",
        levels: int | None = 256,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """
        Args:
            prediction: what the network outputs, one of `coordinates.PREDICTIONS`.
            variance: of the reverse step: `fixed_large` σ² = β_t, `fixed_small` σ² = β̃_t (Ho et al. 2020, §3.2), or
                `learned_range`: between the two, where the second half of the network's channels says (Nichol &
                Dhariwal 2021, eq. 15).
            levels: how many values a number of the data can take on [−1, 1], such as the 256 of 8-bit pixels, of which
                p(x_0 | x_1) gives each a probability; None: they are continuous, and it is a density.
            device, dtype: where the tables, computed in float64, are kept, and what images are handled in.
        """
        if variance not in VARIANCES:
            raise ValueError(f"no variance {variance!r}; there are: {', '.join(VARIANCES)}")

        def table(values: Float64) -> Tensor:
            return torch.as_tensor(values, dtype=dtype, device=device)

        self.timesteps = len(schedule)
        self.prediction = prediction
        self.coordinates = schedule.coordinates
        self.levels = levels
        self.learns_variance = variance == "learned_range"
        level, told = schedule.level, torch.as_tensor(schedule.timesteps, device=device)
        with np.errstate(divide="ignore", invalid="ignore"):
            x0_from_x, x0_from_out, input_scale, _ = preconditioning(prediction, level, self.coordinates)
        from_x0, from_noise = target(prediction, level, self.coordinates)
        self.table = Coefficients(
            signal=table(level.signal),
            noise=table(level.noise),
            x0_from_x=table(x0_from_x),
            x0_from_out=table(x0_from_out),
            input_scale=table(input_scale),
            time=told.to(dtype) if self.coordinates.continuous else told,
            target_from_x0=table(from_x0),
            target_from_noise=table(from_noise),
        )
        self._sees_x = bool((input_scale == 1).all()) and not self.coordinates.continuous
        self.signal, self.noise = self.table.signal, self.table.noise
        self.x0_from_out = self.table.x0_from_out
        self.mean_from_x0 = table(schedule.posterior_mean_coef_x0)
        self.mean_from_xt = table(schedule.posterior_mean_coef_xt)
        self.posterior_variance = table(schedule.posterior_variance)
        small, large = schedule.posterior_log_variance_clipped, np.log(schedule.betas)
        self.posterior_log_variance = table(small)
        if variance == "fixed_large":
            # The first step takes β̃'s value: σ² = β_1 would make the decoder's likelihood poor (Ho et al.'s code).
            small = np.append(small[0], large[1:])
        # p_θ's log variance; a learned one lies between this and log β_t.
        self.model_log_variance = table(small)
        self.max_log_variance = table(large)

    def at(self, t: Tensor) -> Coefficients:
        """The coefficients at t, [N] each."""
        if not t.is_floating_point():
            return Coefficients(*(table[t] for table in self.table))
        level = Level(torch.sigmoid(-2 * t) ** 0.5, torch.sigmoid(2 * t) ** 0.5, t)
        from_x, from_out, input_scale, time = preconditioning(self.prediction, level, self.coordinates)
        assert time is not None
        told = from_x, from_out, input_scale, time, *target(self.prediction, level, self.coordinates)
        return Coefficients(level.signal, level.noise, *told)

    def q_sample(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε (Ho et al. 2020, eq. 4)."""
        at = self.at(t)
        return _wide(at.signal, x0) * x0 + _wide(at.noise, x0) * noise

    def told(self, xt: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """What the network is given: its input and its time."""
        if self._sees_x:
            return xt, t
        at = self.at(t)
        return _wide(at.input_scale, xt) * xt, at.time

    def q_posterior(self, x0: Tensor, xt: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance and clipped log variance of q(x_{t−1} | x_t, x_0) (eq. 6 and 7), each broadcastable to x."""
        mean = _at(self.mean_from_x0, t, xt) * x0 + _at(self.mean_from_xt, t, xt) * xt
        return mean, _at(self.posterior_variance, t, xt), _at(self.posterior_log_variance, t, xt)

    def split(self, out: Tensor) -> tuple[Tensor, Tensor | None]:
        """The network's output as its prediction and, where it learns the variance, its word on that."""
        if not self.learns_variance:
            return out, None
        prediction, variance = out.chunk(2, dim=1)
        return prediction, variance

    def predict_x0(self, prediction: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """x̂_0 from the network's prediction."""
        at = self.at(t)
        return _wide(at.x0_from_x, xt) * xt + _wide(at.x0_from_out, xt) * prediction

    def p_mean_variance(
        self, out: Tensor, xt: Tensor, t: Tensor, *, clip: bool = True
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and log variance of p_θ(x_{t−1} | x_t), broadcastable to x, and x̂_0, clipped to [−1, 1] if asked."""
        prediction, variance = self.split(out)
        x0 = self.predict_x0(prediction, xt, t)
        if clip:
            x0 = x0.clamp(-1, 1)
        mean, _, _ = self.q_posterior(x0, xt, t)
        log_variance = _at(self.model_log_variance, t, xt)
        if variance is not None:
            fraction = (variance + 1) / 2
            log_variance = fraction * _at(self.max_log_variance, t, xt) + (1 - fraction) * log_variance
        return mean, log_variance, x0

    def target(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """What the network is asked to say, such as ε or v = √ᾱ ε − √(1−ᾱ) x_0 (Salimans & Ho 2022)."""
        at = self.at(t)
        return _wide(at.target_from_noise, x0) * noise + _wide(at.target_from_x0, x0) * x0


def _wide(values: Tensor, x: Tensor) -> Tensor:
    """[N] as [N, 1, ...], to multiply x."""
    return values.view(-1, *[1] * (x.ndim - 1))


def _at(table: Tensor, t: Tensor, x: Tensor) -> Tensor:
    """The table's values at t, shaped [N, 1, ...] to multiply x."""
    return _wide(table[t], x)
