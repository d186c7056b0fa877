"""The likelihood by the probability-flow ODE, of any process (Song et al. 2021, §4.3 and appendix D.2).

The ODE's flow is invertible, so −log₂ p(x_0) is that of the noise at its end and the integral of the divergence on the
way. With x scaled as `coordinates` says and u = ln(σ/a), both the flow and its divergence are bounded at either end:

    dx/du = √ᾱ (√ᾱ x − x̂_0),    ∇·dx/du = √ᾱ (√ᾱ d − tr ∂x̂_0/∂x).

The trace is estimated as vᵀ (∂x̂_0/∂x) v with random signs v (Hutchinson 1989), which is unbiased; two independent
estimates of each datum tell the error. In few dimensions it is computed exactly.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm.diffusion.coordinates import preconditioning
from ddpm.diffusion.noise import stream
from ddpm.diffusion.sampling import Denoiser
from ddpm.diffusion.schedules import Schedule

STEPS = 64
EXACT = 8  # dimensions up to which the trace is exact
PROBES, DEQUANTISATION = 2, 3  # purposes of `noise.stream`: 0 is a datum's noise, 1 its label


@dataclass(frozen=True)
class OdeLikelihood:
    """−log₂ p(x_0) in bits per dimension, averaged over data.

    Attributes:
        bits_per_dim: of continuous data a density in the units of the network; of data on levels the bound that uniform
            dequantisation gives (Theis et al. 2016, eq. 3).
        standard_error: of `bits_per_dim`, from the estimate of the trace; 0 where that is exact.
        images: how many were averaged.
    """

    bits_per_dim: float
    standard_error: float
    images: int


class _Flow:
    """The ODE at the levels of a schedule."""

    def __init__(self, denoise: Denoiser, levels: Schedule, prediction: str, like: Tensor) -> None:
        self._denoise = denoise
        told = preconditioning(prediction, levels.level, levels.coordinates)
        self._coefficients = [
            table.tolist() for table in (told.x0_from_x, told.x0_from_out, told.input_scale, levels.level.signal)
        ]
        self._times = torch.as_tensor(levels.timesteps, device=like.device)
        if levels.coordinates.continuous:
            self._times = self._times.to(like.dtype)
        self.u: list[float] = levels.level.log_ratio.tolist()

    def at(self, number: int, x: Tensor, probes: Tensor) -> tuple[Tensor, Tensor]:
        """dx/du at a level, and the divergence by each probe [K, N].

        Args:
            x: [N, C, ...].
            probes: [K, N, C, ...].
        """
        from_x, from_out, input_scale, signal = (column[number] for column in self._coefficients)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            out = self._denoise(input_scale * x, self._times[number].expand(len(x)))
            x0 = from_x * x + from_out * out[:, : x.shape[1]].to(x.dtype)
            products = [torch.autograd.grad(x0, x, probe, retain_graph=True)[0] for probe in probes]
        traces = torch.stack([(probe * each).flatten(1).sum(1) for probe, each in zip(probes, products, strict=True)])
        dimensions = x[0].numel()
        if len(probes) == dimensions:  # unit vectors, which have a part of the trace each
            traces = traces.sum(0, keepdim=True)
        return signal * (signal * x.detach() - x0.detach()), signal * (signal * dimensions - traces)


def ode_likelihood(
    denoise: Denoiser,
    schedule: Schedule,
    prediction: str,
    batches: Iterable[Tensor],
    *,
    given: Iterable[Mapping[str, Tensor]] | None = None,
    levels: int | None = None,
    steps: int = STEPS,
    seed: int = 0,
    on_evaluations: Callable[[int], object] = lambda count: None,
) -> OdeLikelihood:
    """−log₂ p(x_0) by Heun's method, whose error falls as the square of the number of steps.

    Args:
        denoise: the network.
        schedule: its process; the ODE runs from its least noise to the most that is finite, at even steps in ln(σ/a) or
            the nearest numbered levels.
        prediction: what the network outputs.
        batches: data [n, C, ...] in [−1, 1], on the device and in the precision to work in.
        given: for each batch, the third argument of the network; None: nothing.
        levels: how many values a number of the data can take on [−1, 1]; None: they are continuous.
        steps: each takes two evaluations of the network and of its gradient; fewer where there are fewer levels.
        seed: of dequantisation and of the estimate.
        on_evaluations: called with how many data the network was evaluated for.

    Raises:
        ValueError: there are no data.
    """
    visited = schedule.visited(min(steps + 1, len(schedule)), "exponential")
    bits, squares, count = 0.0, 0.0, 0
    told = itertools.repeat({}) if given is None else given
    for x0, condition in zip(batches, told, strict=False):
        bound = denoise if not condition else (lambda x, t, told=condition: denoise(x, t, told))  # type: ignore[call-arg]
        logs = _log_densities(bound, visited, prediction, x0, levels, seed, count, on_evaluations).double().cpu()
        each = -logs / (x0[0].numel() * math.log(2))  # [K, N]
        if levels is not None:
            each = each - math.log2(2 / (levels - 1))
        bits += float(each.mean(0).sum())
        if len(each) == 2:
            squares += float((each[0] - each[1]).square().sum()) / 4
        count += len(x0)
    if not count:
        raise ValueError("no images to evaluate the likelihood of")
    return OdeLikelihood(bits / count, math.sqrt(squares) / count, count)


def _log_densities(
    denoise: Denoiser,
    visited: Schedule,
    prediction: str,
    x0: Tensor,
    levels: int | None,
    seed: int,
    first: int,
    on_evaluations: Callable[[int], object],
) -> Tensor:
    """ln p(x_0) of each datum, in nats, as each estimate of the trace has it, [K, N]."""
    if levels is not None:
        x0 = x0 + (_uniform(x0, seed, first, DEQUANTISATION) - 0.5) * (2 / (levels - 1))
    flow, probes = _Flow(denoise, visited, prediction, x0), _probes(x0, seed, first)
    signal, dimensions = float(visited.level.signal[0]), x0[0].numel()
    x = signal * x0
    gained = x0.new_zeros(())
    for number, step in enumerate(b - a for a, b in itertools.pairwise(flow.u)):
        speed, divergence = flow.at(number, x, probes)
        speed_after, divergence_after = flow.at(number + 1, x + step * speed, probes)
        x = x + step / 2 * (speed + speed_after)
        gained = gained + step / 2 * (divergence + divergence_after)
        on_evaluations(2 * len(x))
    at_the_end = -0.5 * x.square().flatten(1).sum(1) - dimensions * math.log(2 * math.pi) / 2
    return at_the_end + dimensions * math.log(signal) + gained


def _probes(x0: Tensor, seed: int, first: int) -> Tensor:
    """Unit vectors, or two times random signs, [K, N, C, ...]."""
    dimensions = x0[0].numel()
    if dimensions <= EXACT:
        units = torch.eye(dimensions, dtype=x0.dtype, device=x0.device).view(dimensions, 1, *x0.shape[1:])
        return units.expand(dimensions, *x0.shape)
    both = torch.stack([x0, x0], dim=1)
    return (_uniform(both, seed, first, PROBES) < 0.5).to(x0).mul(2).sub(1).transpose(0, 1)


def _uniform(like: Tensor, seed: int, first: int, purpose: int) -> Tensor:
    """In [0, 1), of each datum its own, whatever the batches."""
    shape = tuple(like.shape[1:])
    drawn = [torch.from_numpy(stream(seed, first + row, purpose=purpose).random(shape)) for row in range(len(like))]
    return torch.stack(drawn).to(like)
