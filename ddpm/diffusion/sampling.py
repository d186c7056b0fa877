"""The torch executor of a sampling plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ddpm.diffusion.plans import COLUMNS, SamplingPlan

# (x [N, C, H, W], t [N] int64) → the network's output, [N, C, H, W].
Denoiser = Callable[[Tensor, Tensor], Tensor]


def sample(denoise: Denoiser, plan: SamplingPlan, x: Tensor, draw: Callable[[], Tensor]) -> Tensor:
    """Run the plan from noise to images.

    Args:
        denoise: the network.
        plan: the sampler.
        x: x_T, [N, ...] standard normal, on the device to work on.
        draw: gives the z of each row that adds noise, shaped like x.

    Returns:
        x_0 in about [−1, 1], shaped like x.
    """
    for state, _ in trajectory(denoise, plan, x, draw):
        result = state
    return result


@torch.inference_mode()
def trajectory(
    denoise: Denoiser, plan: SamplingPlan, x: Tensor, draw: Callable[[], Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """As `sample`, yielding (x after the row, the row's x̂_0) for every row."""
    previous_x0 = torch.zeros_like(x)
    for t, values in zip(plan.timesteps, plan.table, strict=True):
        row = dict(zip(COLUMNS, values.tolist(), strict=True))
        out = denoise(x, torch.full((len(x),), int(t), dtype=torch.int64, device=x.device))
        x0 = (row["x0_from_x"] * x + row["x0_from_out"] * out).clamp_(-row["clip"], row["clip"])
        x = row["to_x0"] * x0 + row["to_x"] * x
        if row["to_prev"]:
            x += row["to_prev"] * previous_x0
        if row["to_noise"]:
            x += row["to_noise"] * draw()
        previous_x0 = x0
        yield x, x0


def to_uint8(x: Tensor) -> Tensor:
    """Network images [N, C, H, W] in [−1, 1] → pixels [N, H, W, C] uint8, rounded, values outside clipped."""
    return ((x + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def from_uint8(pixels: Tensor) -> Tensor:
    """Pixels [N, H, W, C] uint8 → network images [N, C, H, W] float32 in [−1, 1], channels last in memory."""
    return pixels.permute(0, 3, 1, 2).to(torch.float32).div_(127.5).sub_(1)
