"""Which timesteps a training step looks at."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

HISTORY = 10  # losses remembered of each t
FLOOR = 0.001  # share of the draws that stays uniform, so that no t is lost and no weight infinite


class TimestepSampler(Protocol):
    """Draws t, and says what each draw's loss must be multiplied with to leave the objective as it is."""

    def draw(self, count: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """t [count] from torch's global generator, int64 or in continuous time ln(σ/a), and the losses' weights
        [count], None where all are 1."""
        ...

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Take in the unweighted losses [N] of t [N]."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What it has learned: the live tensors by name, for checkpoints to keep and to fill."""
        ...


class UniformTimesteps:
    """Every t alike (Algorithm 1 of Ho et al. 2020)."""

    def __init__(self, timesteps: int) -> None:
        self.timesteps = timesteps

    def draw(self, count: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
        return torch.randint(self.timesteps, (count,), device=device), None

    def update(self, t: Tensor, losses: Tensor) -> None:
        pass

    def state(self) -> dict[str, Tensor]:
        return {}


class NormalTimesteps:
    """ln(σ/a) ~ N(mean, std²), in continuous time: log-normal σ (Karras et al. 2022, table 1), logit-normal t of a flow
    (Esser et al. 2024, eq. 19).
    """

    def __init__(self, mean: float, std: float) -> None:
        self.mean, self.std = mean, std

    def draw(self, count: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
        return self.mean + self.std * torch.randn(count, device=device), None

    def update(self, t: Tensor, losses: Tensor) -> None:
        pass

    def state(self) -> dict[str, Tensor]:
        return {}


class ImportanceTimesteps:
    """p_t ∝ √E[L_t²] over the last ten losses of each t, uniform until every t has ten; a loss weighs 1/(T p_t)
    (Nichol & Dhariwal 2021, eq. 18).

    It lives on the CPU: a step waits for its losses.
    """

    def __init__(self, timesteps: int) -> None:
        self.losses = torch.zeros(timesteps, HISTORY, dtype=torch.float64)
        self.counts = torch.zeros(timesteps, dtype=torch.int64)  # losses ever seen of each t

    def probabilities(self) -> Tensor:
        """p_t, [T] float64."""
        timesteps = len(self.counts)
        if self.counts.min() < HISTORY:
            return torch.full((timesteps,), 1 / timesteps, dtype=torch.float64)
        scale = self.losses.square().mean(1).sqrt()
        return (1 - FLOOR) * scale / scale.sum() + FLOOR / timesteps

    def draw(self, count: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
        p = self.probabilities()
        t = torch.multinomial(p, count, replacement=True)
        weights = 1 / (len(p) * p[t])
        return t.to(device), weights.to(device, torch.float32)

    def update(self, t: Tensor, losses: Tensor) -> None:
        history, counts = self.losses.numpy(), self.counts.numpy()  # views
        for step, loss in zip(t.tolist(), losses.tolist(), strict=True):
            if not math.isfinite(loss):
                continue  # the loop's to report; a NaN here would only hide it behind an impossible draw
            history[step, counts[step] % HISTORY] = loss
            counts[step] += 1

    def state(self) -> dict[str, Tensor]:
        return {"losses": self.losses, "counts": self.counts}


def timestep_sampler(name: str, timesteps: int, distribution: tuple[float, float] | None) -> TimestepSampler:
    """What draws the timesteps of a task.

    Args:
        name: one of `TIMESTEP_SAMPLERS`, for numbered timesteps.
        timesteps, distribution: as of `Task`.
    """
    return TIMESTEP_SAMPLERS[name](timesteps) if distribution is None else NormalTimesteps(*distribution)


TIMESTEP_SAMPLERS: dict[str, type[UniformTimesteps] | type[ImportanceTimesteps]] = {
    "uniform": UniformTimesteps,
    "importance": ImportanceTimesteps,
}
