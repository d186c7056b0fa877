"""The torch executor of a sampling plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ddpm.diffusion import executor
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
    yield from executor.trajectory(_TORCH, denoise, plan, x, draw, known)


def _times(x: Tensor, t: float) -> Tensor:
    return torch.full((len(x),), t, dtype=x.dtype if isinstance(t, float) else torch.int64, device=x.device)


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


_TORCH = executor.Library(torch.zeros_like, torch.exp, torch.where, _times, _hold)
