"""The Gaussian process in torch: q, its posterior, the reverse step's moments and the training loss.

x is [N, ...] in [−1, 1]; t is [N] int64 in 0..T-1.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ddpm.diffusion.plans import x0_coefficients
from ddpm.diffusion.sampling import Denoiser
from ddpm.diffusion.schedules import Float64, Schedule


class GaussianProcess:
    """q(x_t | x_0), p_θ(x_{t−1} | x_t) and L_simple for one schedule and one prediction target."""

    def __init__(
        self,
        schedule: Schedule,
        *,
        prediction: str = "epsilon",
        variance: str = "fixed_large",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """
        Args:
            prediction: what the network outputs: `epsilon`, `x0` or `v`.
            variance: of the reverse step: `fixed_large` σ² = β_t or `fixed_small` σ² = β̃_t (Ho et al. 2020, §3.2).
            device, dtype: where the tables, computed in float64, are kept, and what images are handled in.
        """

        def table(values: Float64) -> Tensor:
            return torch.as_tensor(values, dtype=dtype, device=device)

        alpha_bar = schedule.alphas_cumprod
        self.timesteps = len(schedule)
        self.prediction = prediction
        self.signal = table(np.sqrt(alpha_bar))
        self.noise = table(np.sqrt(1 - alpha_bar))
        x0_from_x, x0_from_out = x0_coefficients(prediction, alpha_bar)
        self.x0_from_x, self.x0_from_out = table(x0_from_x), table(x0_from_out)
        self.mean_from_x0 = table(schedule.posterior_mean_coef_x0)
        self.mean_from_xt = table(schedule.posterior_mean_coef_xt)
        self.posterior_variance = table(schedule.posterior_variance)
        self.posterior_log_variance = table(schedule.posterior_log_variance_clipped)
        if variance == "fixed_large":
            # The first step takes β̃'s value: σ² = β_1 would make the decoder's likelihood poor (Ho et al.'s code).
            log_variance = np.log(np.append(np.exp(schedule.posterior_log_variance_clipped[0]), schedule.betas[1:]))
        elif variance == "fixed_small":
            log_variance = schedule.posterior_log_variance_clipped
        else:
            raise ValueError(f"no variance {variance!r}; there are: fixed_large, fixed_small")
        self.model_log_variance = table(log_variance)

    def q_sample(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε (Ho et al. 2020, eq. 4)."""
        return _at(self.signal, t, x0) * x0 + _at(self.noise, t, x0) * noise

    def q_posterior(self, x0: Tensor, xt: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance and clipped log variance of q(x_{t−1} | x_t, x_0) (eq. 6 and 7), each broadcastable to x."""
        mean = _at(self.mean_from_x0, t, xt) * x0 + _at(self.mean_from_xt, t, xt) * xt
        return mean, _at(self.posterior_variance, t, xt), _at(self.posterior_log_variance, t, xt)

    def predict_x0(self, out: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """x̂_0 from the network's output."""
        return _at(self.x0_from_x, t, xt) * xt + _at(self.x0_from_out, t, xt) * out

    def p_mean_variance(
        self, denoise: Denoiser, xt: Tensor, t: Tensor, *, clip: bool = True
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and log variance of p_θ(x_{t−1} | x_t), and x̂_0, clipped to [−1, 1] if asked."""
        x0 = self.predict_x0(denoise(xt, t), xt, t)
        if clip:
            x0 = x0.clamp(-1, 1)
        mean, _, _ = self.q_posterior(x0, xt, t)
        return mean, _at(self.model_log_variance, t, xt), x0

    def target(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """What the network is asked to output: ε, x_0, or v = √ᾱ ε − √(1−ᾱ) x_0 (Salimans & Ho 2022)."""
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "x0":
            return x0
        return _at(self.signal, t, x0) * noise - _at(self.noise, t, x0) * x0

    def training_losses(self, denoise: Denoiser, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """L_simple of each image: mean squared error on the target (Ho et al. 2020, eq. 14). [N] float32."""
        out = denoise(self.q_sample(x0, t, noise), t)
        error = (out.float() - self.target(x0, t, noise).float()) ** 2
        return error.flatten(1).mean(1)


def _at(table: Tensor, t: Tensor, x: Tensor) -> Tensor:
    """The table's values at t, shaped [N, 1, ...] to multiply x."""
    return table[t].view(-1, *[1] * (x.ndim - 1))
