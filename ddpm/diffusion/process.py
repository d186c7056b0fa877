"""The Gaussian process in torch: q, its posterior, and the reverse step's moments.

x is [N, C, ...] in [−1, 1]; t is [N] int64 in 0..T-1; out is what the network says of (x_t, t), shaped like x, or
[N, 2C, ...] where it learns the variance too.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ddpm.diffusion.schedules import VARIANCES, Float64, Schedule, x0_coefficients


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
            prediction: what the network outputs: `epsilon`, `x0` or `v`.
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

        alpha_bar = schedule.alphas_cumprod
        self.timesteps = len(schedule)
        self.prediction = prediction
        self.levels = levels
        self.learns_variance = variance == "learned_range"
        self.signal = table(np.sqrt(alpha_bar))
        self.noise = table(np.sqrt(1 - alpha_bar))
        x0_from_x, x0_from_out = x0_coefficients(prediction, alpha_bar)
        self.x0_from_x, self.x0_from_out = table(x0_from_x), table(x0_from_out)
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

    def q_sample(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε (Ho et al. 2020, eq. 4)."""
        return _at(self.signal, t, x0) * x0 + _at(self.noise, t, x0) * noise

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
        return _at(self.x0_from_x, t, xt) * xt + _at(self.x0_from_out, t, xt) * prediction

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
        """What the network is asked to predict: ε, x_0, or v = √ᾱ ε − √(1−ᾱ) x_0 (Salimans & Ho 2022)."""
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "x0":
            return x0
        return _at(self.signal, t, x0) * noise - _at(self.noise, t, x0) * x0


def _at(table: Tensor, t: Tensor, x: Tensor) -> Tensor:
    """The table's values at t, shaped [N, 1, ...] to multiply x."""
    return table[t].view(-1, *[1] * (x.ndim - 1))
