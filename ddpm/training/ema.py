"""The exponential moving average of the weights, which is the model that is evaluated and shipped."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


def trainable(network: nn.Module) -> list[Tensor]:
    """The parameters that training changes, in their order; the others are frozen, as the base of a ControlNet."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


class EMA:
    """Averages of the parameters that a network trains: a ← d a + (1 − d) p after every step."""

    def __init__(self, network: nn.Module, decay: float, *, warmup: bool = True) -> None:
        """
        Args:
            decay: d in [0, 1).
            warmup: min(d, (1 + k)/(10 + k)) at step k, so that early weights are soon forgotten: about the last ninth
                of the steps counts, until d is reached at step (10 d − 1)/(1 − d), 4,490 for 0.998 and 89,990 for
                0.9999. Else d from the first step, as in the code of Ho et al. 2020 and of Nichol & Dhariwal 2021.
        """
        self.decay, self.warmup = decay, warmup
        self._parameters = trainable(network)
        self.averages = [parameter.detach().clone() for parameter in self._parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimiser step `step`, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay
        torch._foreach_lerp_(self.averages, self._parameters, 1 - decay)

    @torch.no_grad()
    def distance(self) -> Tensor:
        """‖a − p‖ / ‖p‖ over all weights together, a scalar on their device."""
        apart, size = (
            torch.stack(torch._foreach_norm(each)).norm()
            for each in (torch._foreach_sub(self.averages, self._parameters), self._parameters)
        )
        return apart / size

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the block the network has the averages for weights; after it, its own again to the last bit."""
        own = [parameter.detach().clone() for parameter in self._parameters]
        try:
            self._fill(self.averages)
            yield
        finally:
            self._fill(own)

    @torch.no_grad()
    def _fill(self, weights: list[Tensor]) -> None:
        torch._foreach_copy_(self._parameters, weights)

    @torch.no_grad()
    def copy_to(self, network: nn.Module) -> None:
        """Make the averages the network's weights."""
        torch._foreach_copy_(trainable(network), self.averages)
