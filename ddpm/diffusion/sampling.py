"""The torch executor of a sampling plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ddpm.diffusion.known import Known
from ddpm.diffusion.plans import Row, SamplingPlan

# (its input [N, C, ...], t [N] int64 or float) → the network's output, [N, C, ...], or [N, 2C, ...] from one that
# learns its variance.
Denoiser = Callable[[Tensor, Tensor], Tensor]


def sample(
    denoise: Denoiser,
    plan: SamplingPlan,
    x: Tensor,
    draw: Callable[[], Tensor],
    known: Known[Tensor] | None = None,
) -> Tensor:
    """Run the plan from noise to images.

    Args:
        denoise: the network.
        plan: the sampler.
        x: x_T, [N, C, ...] standard normal, on the device to work on.
        draw: gives the z of each row that adds noise, shaped like x.
        known: what is known of x_0.

    Returns:
        x_0 in about [−1, 1], shaped like x.
    """
    for state, _ in trajectory(denoise, plan, x, draw, known):
        result = state
    return result


@torch.no_grad()
def trajectory(
    denoise: Denoiser,
    plan: SamplingPlan,
    x: Tensor,
    draw: Callable[[], Tensor],
    known: Known[Tensor] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """As `sample`, yielding (x after the row, the row's x̂_0) for every row."""
    x0 = previous = torch.zeros_like(x)
    for t, row in plan.rows():
        z = draw() if row.to_noise or row.known_noise else 0.0
        if row.x0_from_out:
            after, found = _denoised(denoise, t, row, x, (x0, previous), z, known)
            x, x0, previous = after, found, x0
        else:  # back into the noise
            x = row.to_x * x + row.to_noise * z
        if known is not None and row.known_x0:
            x = torch.where(known.mask, row.known_x0 * known.x0 + row.known_noise * z, x)
        yield x, x0


def _denoised(
    denoise: Denoiser,
    t: float,
    row: Row,
    x: Tensor,
    before: tuple[Tensor, Tensor],
    z: Tensor | float,
    known: Known[Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """One row that asks the network: (x after it, its x̂_0).

    Args:
        before: x̂_0 of the row before it, and of the one before that.
    """
    times = torch.full((len(x),), t, dtype=x.dtype if isinstance(t, float) else torch.int64, device=x.device)
    seen, channels = x if row.input_scale == 1 else row.input_scale * x, x.shape[1]
    if row.control is not None:  # only a `conditioning.control_weights.Steered` is given such rows
        denoise = denoise.controlled(row.control)  # type: ignore[attr-defined]
    out = _evaluated(denoise, seen, times, 0.0 if row.mean_shift else row.guidance)
    shift = _mean_shift(denoise, seen, times, row, out[:, channels:]) if row.mean_shift else None
    x0 = _hold(row.x0_from_x * x + row.x0_from_out * out[:, :channels], row)
    if known is not None:
        x0 = torch.where(known.mask, known.x0, x0)
    x = row.mean(x0, x, before)
    if row.log_noise_from_out and row.to_noise:
        x += row.to_noise * torch.exp(row.log_noise_from_out * out[:, channels:]) * z
    elif row.to_noise:
        x += row.to_noise * z
    if shift is not None:
        x += shift
    return x, x0


def _evaluated(denoise: Denoiser, x: Tensor, t: Tensor, weight: float) -> Tensor:
    """The output, guided where the row has a weight; only a `conditioning.guidance.Guided` is given such rows."""
    return denoise.guided(x, t, weight) if weight else denoise(x, t)  # type: ignore[attr-defined]


def _mean_shift(denoise: Denoiser, x: Tensor, t: Tensor, row: Row, v: Tensor) -> Tensor:
    """w Σ ∇_x f(x_t, t); only a `conditioning.guidance.Gradient` is given such rows."""
    shift = row.mean_shift * denoise.gradient(x, t)  # type: ignore[attr-defined]
    return shift * torch.exp(2 * row.log_noise_from_out * v) if row.log_noise_from_out else shift


def _hold(x0: Tensor, row: Row) -> Tensor:
    """x̂_0 within the row's bounds."""
    # ±∞ · 0 is NaN; any other number is left as it is.
    unbounded = x0 * 0
    if not row.quantile:
        return x0.clamp_(-row.clip, row.clip).add_(unbounded)
    # By sorting: before torch 2.13, torch.quantile refuses batches of more than 2²⁴ numbers.
    magnitudes = x0.abs().flatten(1).sort(dim=1).values
    place = row.quantile * (magnitudes.shape[1] - 1)
    below, above = magnitudes[:, math.floor(place)], magnitudes[:, math.ceil(place)]
    bound = below.lerp(above, place % 1).clamp_(1, row.clip).view(-1, *[1] * (x0.ndim - 1))
    return x0.clamp_(-bound, bound).div_(bound).add_(unbounded)
