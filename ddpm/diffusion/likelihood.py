"""The variational bound in bits per dimension (Ho et al. 2020, eq. 5; Nichol & Dhariwal 2021, §3).

−log₂ p(x_0) ≤ L_T + Σ L_{t−1} + L_0: what it costs to send x_T, every x_{t−1} after x_t, and the 8-bit x_0 after x_1.

Of continuous data p is a density in the units of the network, and the bound is −log₂ of it per dimension. It can be
negative and is not the length of a code; it compares models of the same data. In the data's own units it is larger by
log₂ of half the range of a channel.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpm.diffusion.noise import ImageNoise
from ddpm.diffusion.process import GaussianProcess
from ddpm.diffusion.sampling import Denoiser


def normal_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL(N₁ ‖ N₂) of each dimension, in nats; the arguments broadcast."""
    ratio = log_variance1 - log_variance2
    return 0.5 * (ratio.exp() - 1 - ratio + (mean1 - mean2) ** 2 * torch.exp(-log_variance2))


def gaussian_log_density(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """log of the density of N(mean, scale²) at each x, in nats."""
    return -0.5 * ((x - mean) * torch.exp(-log_scale)) ** 2 - log_scale - math.log(2 * math.pi) / 2


def discretized_gaussian_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor, levels: int = 256) -> Tensor:
    """log of the mass that N(mean, scale²) has on the level of each x, in nats (Ho et al. 2020, eq. 13).

    Args:
        x: on the equally spaced levels of [−1, 1]; the two outer levels reach to infinity.
        levels: how many there are.

    The mass is exact and does not vanish far from the mean, where the papers' code has an approximation of Φ and a
    floor of 1e-12.
    """
    precision = torch.exp(-log_scale)
    half = 1 / (levels - 1)  # of the distance between two levels
    lower = torch.where(x < -1 + half / 4, -math.inf, (x - mean - half) * precision)
    upper = torch.where(x > 1 - half / 4, math.inf, (x - mean + half) * precision)
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
    if process.levels is None:
        decoder = -gaussian_log_density(x0, mean, log_variance / 2)
    else:
        decoder = -discretized_gaussian_log_likelihood(x0, mean, log_variance / 2, process.levels)
    is_first = (t == 0).view(-1, *[1] * (x0.ndim - 1))
    return torch.where(is_first, decoder, kl).flatten(1).mean(1) / math.log(2)


def prior_terms(process: GaussianProcess, x0: Tensor) -> Tensor:
    """L_T = KL(q(x_T | x_0) ‖ N(0, I)) of each image, in bits per dimension. [N]."""
    mean, log_variance = process.signal[-1] * x0, 2 * process.noise[-1].log()
    zero = torch.zeros_like(log_variance)
    return normal_kl(mean, log_variance, zero, zero).flatten(1).mean(1) / math.log(2)


class Stratum(NamedTuple):
    """Neighbouring timesteps, and those of them whose terms are computed."""

    size: int
    chosen: tuple[int, ...]


def strata(timesteps: int, count: int | None, seed: int) -> list[Stratum]:
    """A partition of 0 … T−1, with `count` timesteps chosen in all, in ascending order.

    The first quarter of them are the first timesteps, whose terms are the largest. The rest is divided into strata that
    grow geometrically, as the terms fall; of each stratum two timesteps are drawn without replacement.

    Args:
        timesteps: T.
        count: None, or T or more: every timestep is chosen.
        seed: of the draws.

    Raises:
        ValueError: `count` is below 4.
    """
    if count is None or count >= timesteps:
        return [Stratum(1, (t,)) for t in range(timesteps)]
    if count < 4:
        raise ValueError(f"at least 4 timesteps are needed, found {count}")
    pairs = 3 * count // 8
    alone = count - 2 * pairs
    random = np.random.default_rng(seed)
    drawn = [
        Stratum(last - first, tuple(np.sort(first + random.choice(last - first, 2, replace=False)).tolist()))
        for first, last in pairwise(_growing(alone, timesteps, pairs))
    ]
    return [*(Stratum(1, (t,)) for t in range(alone)), *drawn]


def _growing(first: int, last: int, parts: int) -> list[int]:
    """The edges of `parts` intervals from `first` to `last`, each of two or more, their sizes growing geometrically."""
    low, high = 1.0, float(last)
    while high - low > 1e-9:
        ratio = (low + high) / 2
        low, high = (ratio, high) if np.sum(2 * ratio ** np.arange(parts)) < last - first else (low, ratio)
    ends = np.cumsum(2 * low ** np.arange(parts))
    edges = first + np.rint(ends * (last - first) / ends[-1]).astype(int)
    # Rounding leaves every interval two or more: the exact sizes do not decrease and begin with two.
    return [first, *edges.tolist()]


@dataclass(frozen=True)
class LikelihoodBound:
    """The bound on −log₂ p(x_0), in bits per dimension, averaged over images.

    Attributes:
        terms: [K] float64: of each chosen timestep, ascending: L_0, the decoder's, or the KL of a later step.
        prior: L_T.
        images: how many were averaged.
        strata: what the terms stand for.
    """

    terms: Tensor
    prior: float
    images: int
    strata: tuple[Stratum, ...]

    @property
    def timesteps(self) -> list[int]:
        """Those of `terms`."""
        return [t for stratum in self.strata for t in stratum.chosen]

    @property
    def bits_per_dim(self) -> float:
        """The whole bound, or where timesteps were drawn an unbiased estimate of it."""
        weights = [size / len(chosen) for size, chosen in self.strata for _ in chosen]
        return self.prior + float((self.terms * torch.tensor(weights, dtype=torch.float64)).sum())

    @property
    def standard_error(self) -> float:
        """Of `bits_per_dim`, from the choice of timesteps; 0 where all were chosen."""
        squared, at = 0.0, 0
        for size, chosen in self.strata:
            count, at = len(chosen), at + len(chosen)
            if count < size:
                spread = float(self.terms[at - count : at].var())
                squared += size**2 * (1 - count / size) * spread / count
        return math.sqrt(squared)


def likelihood_bound(
    denoise: Denoiser, process: GaussianProcess, batches: Iterable[Tensor], *, seed: int = 0, clip: bool = True
) -> LikelihoodBound:
    """`likelihood_bounds` of one group of images."""
    return likelihood_bounds(denoise, process, batches, seed=seed, clip=clip)[0]


def likelihood_bounds(
    denoise: Denoiser,
    process: GaussianProcess,
    *groups: Iterable[Tensor],
    given: Sequence[Iterable[Mapping[str, Tensor]]] = (),
    seed: int = 0,
    clip: bool = True,
    timesteps: int | None = None,
    on_evaluations: Callable[[int], object] = lambda count: None,
) -> list[LikelihoodBound]:
    """The bound of each group: one evaluation of the network per image and timestep, with one batch of every group in
    memory.

    The groups' first batches go through the network together, then their second ones, and so on: T small evaluations
    take about as long as T larger ones.

    Args:
        groups: batches of data [n, C, ...] in [−1, 1], on the levels of the process if it has any; on the device and
            in the precision to work in.
        given: of each group, for each of its batches, the network's third argument, its condition; nothing of an
            unconditional one.
        seed: of the noise; image i of a group is always noised the same way, whatever the batches and the other groups.
        clip: hold x̂_0 in [−1, 1], as the papers do.
        timesteps: estimate the bound from this many timesteps, see `strata`; None: all T.
        on_evaluations: called with how many images the network was evaluated for, T times for each batch.

    Raises:
        ValueError: a group has no images, or there are too few timesteps.
    """
    parted = strata(process.timesteps, timesteps, seed)
    steps = [t for stratum in parted for t in stratum.chosen]
    images = [0] * len(groups)
    sums = torch.zeros(len(groups), len(steps) + 1, dtype=torch.float64)
    conditions_of = zip_longest(*given) if given else itertools.repeat([{}] * len(groups))
    for parts, conditions in zip(zip_longest(*groups), conditions_of, strict=False):
        present = {group: x0 for group, x0 in enumerate(parts) if x0 is not None}
        noises = [ImageNoise(seed, len(x0), tuple(x0.shape[1:]), first=images[group]) for group, x0 in present.items()]
        x0 = torch.cat(list(present.values()))
        condition = [each for each in conditions if each is not None]
        together = {name: torch.cat([each[name] for each in condition]) for name in condition[0]}
        terms = _terms(_conditioned(denoise, together), process, x0, noises, steps, on_evaluations, clip=clip)
        for (group, x0), own in zip(present.items(), terms.split([len(x0) for x0 in present.values()], 1), strict=True):
            sums[group] += own.double().sum(1).cpu()
            images[group] += len(x0)
    if not all(images):
        raise ValueError("no images to evaluate the likelihood of")
    return [
        LikelihoodBound(terms=total[:-1] / count, prior=float(total[-1] / count), images=count, strata=tuple(parted))
        for total, count in zip(sums, images, strict=True)
    ]


def _conditioned(denoise: Denoiser, condition: Mapping[str, Tensor]) -> Denoiser:
    return (lambda x, t: denoise(x, t, condition)) if condition else denoise  # type: ignore[call-arg]


@torch.inference_mode()
def _terms(
    denoise: Denoiser,
    process: GaussianProcess,
    x0: Tensor,
    noises: Sequence[ImageNoise],
    steps: Sequence[int],
    on_evaluations: Callable[[int], object],
    *,
    clip: bool,
) -> Tensor:
    """The terms of each image's bound at these timesteps, and the prior's last, [K + 1, N] on the images' device."""
    terms = x0.new_empty(len(steps) + 1, len(x0))
    terms[-1] = prior_terms(process, x0)
    for row, step in reversed(list(enumerate(steps))):
        t = torch.full((len(x0),), step, dtype=torch.int64, device=x0.device)
        noise = np.concatenate([own.draw() for own in noises])
        xt = process.q_sample(x0, t, torch.from_numpy(noise).to(x0))
        terms[row] = vlb_terms(process, denoise(*process.told(xt, t)).to(x0.dtype), x0, xt, t, clip=clip)
        on_evaluations(len(x0))
    return terms
