"""The variational bound in bits per dimension (Ho et al. 2020, eq. 5; Nichol & Dhariwal 2021, §3).

−log₂ p(x_0) ≤ L_T + Σ L_{t−1} + L_0: what it costs to send x_T, every x_{t−1} after x_t, and the 8-bit x_0 after x_1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import torch
from torch import Tensor

from ddpm.diffusion.noise import ImageNoise
from ddpm.diffusion.process import GaussianProcess
from ddpm.diffusion.sampling import Denoiser

HALF_LEVEL = 1 / 255  # half the distance of two of 256 levels on [−1, 1]


def normal_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL(N₁ ‖ N₂) of each dimension, in nats; the arguments broadcast."""
    ratio = log_variance1 - log_variance2
    return 0.5 * (ratio.exp() - 1 - ratio + (mean1 - mean2) ** 2 * torch.exp(-log_variance2))


def discretized_gaussian_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """log of the mass that N(mean, scale²) has on the level of each x, in nats (Ho et al. 2020, eq. 13).

    Args:
        x: on the 256 levels of [−1, 1]; the two outer levels reach to infinity.

    The mass is exact and does not vanish far from the mean, where the papers' code has an approximation of Φ and a
    floor of 1e-12.
    """
    precision = torch.exp(-log_scale)
    lower = torch.where(x < -0.999, -math.inf, (x - mean - HALF_LEVEL) * precision)
    upper = torch.where(x > 0.999, math.inf, (x - mean + HALF_LEVEL) * precision)
    # Above the mean Φ saturates: there the mirrored interval has the same mass and the digits to say it.
    mirrored = lower > 0
    lower, upper = torch.where(mirrored, -upper, lower), torch.where(mirrored, -lower, upper)
    log_upper = torch.special.log_ndtr(upper)
    share_below = (torch.special.log_ndtr(lower) - log_upper).clamp(max=-1e-12)
    return log_upper + torch.log(-torch.expm1(share_below))


def vlb_terms(
    process: GaussianProcess,
    out: Tensor,
    x0: Tensor,
    xt: Tensor,
    t: Tensor,
    *,
    clip: bool,
    detach_mean: bool = False,
) -> Tensor:
    """Each image's term of the bound at its t: L_{t}, or L_0 where t = 0, in bits per dimension. [N].

    Args:
        out: what the network says of (xt, t).
        clip: hold x̂_0 in [−1, 1].
        detach_mean: let no gradient through the mean, so that only the variance learns.
    """
    true_mean, _, true_log_variance = process.q_posterior(x0, xt, t)
    mean, log_variance, _ = process.p_mean_variance(out, xt, t, clip=clip)
    if detach_mean:
        mean = mean.detach()
    kl = normal_kl(true_mean, true_log_variance, mean, log_variance)
    decoder = -discretized_gaussian_log_likelihood(x0, mean, log_variance / 2)
    is_first = (t == 0).view(-1, *[1] * (x0.ndim - 1))
    return torch.where(is_first, decoder, kl).flatten(1).mean(1) / math.log(2)


def prior_terms(process: GaussianProcess, x0: Tensor) -> Tensor:
    """L_T = KL(q(x_T | x_0) ‖ N(0, I)) of each image, in bits per dimension. [N]."""
    mean, log_variance = process.signal[-1] * x0, 2 * process.noise[-1].log()
    zero = torch.zeros_like(log_variance)
    return normal_kl(mean, log_variance, zero, zero).flatten(1).mean(1) / math.log(2)


@dataclass(frozen=True)
class LikelihoodBound:
    """The bound on −log₂ p(x_0), in bits per dimension, averaged over images.

    Attributes:
        terms: [T] float64: L_0, the decoder's, then the KL of every later step.
        prior: L_T.
        images: how many were averaged.
    """

    terms: Tensor
    prior: float
    images: int

    @property
    def bits_per_dim(self) -> float:
        """The whole bound."""
        return self.prior + float(self.terms.sum())


def likelihood_bound(
    denoise: Denoiser, process: GaussianProcess, batches: Iterable[Tensor], *, seed: int = 0, clip: bool = True
) -> LikelihoodBound:
    """`likelihood_bounds` of one group of images."""
    return likelihood_bounds(denoise, process, batches, seed=seed, clip=clip)[0]


def likelihood_bounds(
    denoise: Denoiser,
    process: GaussianProcess,
    *groups: Iterable[Tensor],
    seed: int = 0,
    clip: bool = True,
    on_evaluations: Callable[[int], object] = lambda count: None,
) -> list[LikelihoodBound]:
    """The full bound of each group: T evaluations of the network an image, in the memory of one batch of every group.

    The groups' first batches go through the network together, then their second ones, and so on: T small evaluations
    take about as long as T larger ones.

    Args:
        groups: batches of images [n, C, ...] in [−1, 1] on 256 levels, on the device and in the precision to work in.
        seed: of the noise; image i of a group is always noised the same way, whatever the batches and the other groups.
        clip: hold x̂_0 in [−1, 1], as the papers do.
        on_evaluations: called with how many images the network was evaluated for, T times for each batch.

    Raises:
        ValueError: a group has no images.
    """
    images = [0] * len(groups)
    sums = torch.zeros(len(groups), process.timesteps + 1, dtype=torch.float64)
    for parts in zip_longest(*groups):
        present = {group: x0 for group, x0 in enumerate(parts) if x0 is not None}
        noises = [ImageNoise(seed, len(x0), tuple(x0.shape[1:]), first=images[group]) for group, x0 in present.items()]
        terms = _terms(denoise, process, torch.cat(list(present.values())), noises, on_evaluations, clip=clip)
        for (group, x0), own in zip(present.items(), terms.split([len(x0) for x0 in present.values()], 1), strict=True):
            sums[group] += own.double().sum(1).cpu()
            images[group] += len(x0)
    if not all(images):
        raise ValueError("no images to evaluate the likelihood of")
    return [
        LikelihoodBound(terms=total[:-1] / count, prior=float(total[-1] / count), images=count)
        for total, count in zip(sums, images, strict=True)
    ]


@torch.inference_mode()
def _terms(
    denoise: Denoiser,
    process: GaussianProcess,
    x0: Tensor,
    noises: Sequence[ImageNoise],
    on_evaluations: Callable[[int], object],
    *,
    clip: bool,
) -> Tensor:
    """All terms of each image's bound, the prior's last, [T + 1, N] on the images' device."""
    terms = x0.new_empty(process.timesteps + 1, len(x0))
    terms[-1] = prior_terms(process, x0)
    for step in reversed(range(process.timesteps)):
        t = torch.full((len(x0),), step, dtype=torch.int64, device=x0.device)
        noise = np.concatenate([own.draw() for own in noises])
        xt = process.q_sample(x0, t, torch.from_numpy(noise).to(x0))
        terms[step] = vlb_terms(process, denoise(xt, t).to(x0.dtype), x0, xt, t, clip=clip)
        on_evaluations(len(x0))
    return terms
