"""Guidance: how a network's output moves away from that of a weaker one.

The weight w of a step is a number of its row in the sampling plan. `guidance_scale` s = 1 + w is one convention
everywhere: 1 is the conditional model, 0 the unconditional one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from ddpm.conditioning.network import bind, blank, columns_in
from ddpm.diffusion.sampling import Denoiser


class Guided(Protocol):
    """A denoiser that can be guided. Executors call it with a weight where a row has one, else as any denoiser."""

    def __call__(self, x: Tensor, t: Tensor) -> Tensor: ...

    def guided(self, x: Tensor, t: Tensor, weight: float) -> Tensor:
        """The output at guidance weight w, [N, C or 2C, ...]. Costs two evaluations of the network."""
        ...


class ClassifierFree:
    """ε(x, c) + w (ε(x, c) − ε(x, ∅)) (Ho & Salimans 2022, eq. 6).

    Of a network that learns its variance the first half of the channels is guided; the variance is the conditional
    one's.

    Both halves are one batch.
    """

    def __init__(self, network: nn.Module, given: Mapping[str, Tensor]) -> None:
        self._network, self._given = network, given
        self._told = bind(network, given)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self._told(x, t)

    def guided(self, x: Tensor, t: Tensor, weight: float) -> Tensor:
        null = blank(columns_in(self._network), x)
        both = {name: torch.cat([value, null[name].to(value)]) for name, value in self._given.items()}
        told, untold = self._network(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
        return away_from(told, untold, weight, x.shape[1])


class Autoguidance:
    """D₁(x) + w (D₁(x) − D₀(x)) with a weaker model D₀ of the same data, process and condition (Karras et al. 2024)."""

    def __init__(self, strong: Denoiser, weak: Denoiser) -> None:
        self._strong, self._weak = strong, weak

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self._strong(x, t)

    def guided(self, x: Tensor, t: Tensor, weight: float) -> Tensor:
        return away_from(self._strong(x, t), self._weak(x, t), weight, x.shape[1])


def away_from(strong: Tensor, weak: Tensor, weight: float, channels: int) -> Tensor:
    """The first `channels` of the strong output moved away from those of the weak one; the others are the strong's."""
    prediction = strong[:, :channels] + weight * (strong[:, :channels] - weak[:, :channels])
    return torch.cat([prediction, strong[:, channels:]], dim=1)


def guidable(network: nn.Module) -> bool:
    """Whether classifier-free guidance can be had: some condition was dropped in training."""
    return any(column.null is not None for column in columns_in(network))
