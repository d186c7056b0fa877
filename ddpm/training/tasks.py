"""What training minimises. The loop knows none of these: it draws a batch, timesteps and noise, and asks for losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, Protocol, cast

import torch.nn.functional as F
from torch import Tensor, nn

from ddpm.conditioning.columns import Column, derived, derived_draws
from ddpm.conditioning.network import bind, dropped
from ddpm.diffusion.objectives import L_SIMPLE, Autoencoder, Objective, negative_elbo
from ddpm.diffusion.process import GaussianProcess


class Batch(NamedTuple):
    """Some of the training data.

    Attributes:
        x0: [N, C, ...] in about [−1, 1].
        given: a value of each column, [N, ...].
        uniform: [N, task.draws] in [0, 1); None: the task is to draw nothing.
        step: how many steps the training has done.
    """

    x0: Tensor
    given: Mapping[str, Tensor]
    uniform: Tensor | None = None
    step: int = 0

    def rows(self, rows: slice) -> Batch:
        """A part of it."""
        given = {name: values[rows] for name, values in self.given.items()}
        return self._replace(
            x0=self.x0[rows], given=given, uniform=None if self.uniform is None else self.uniform[rows]
        )


class Task(Protocol):
    """A loss of every datum."""

    @property
    def timesteps(self) -> int:
        """T: timesteps are drawn from 0..T−1."""
        ...

    @property
    def distribution(self) -> tuple[float, float] | None:
        """In continuous time: mean and standard deviation of ln(σ/a), which takes the place of numbered timesteps."""
        ...

    @property
    def draws(self) -> int:
        """How many random numbers it needs of each datum, in `uniform`."""
        ...

    @property
    def columns(self) -> Sequence[Column]:
        """What the network is conditioned on, or answers. A batch has those in `given` that the data have."""
        ...

    @property
    def opponent(self) -> nn.Module | None:
        """A second network, for whose weights `losses` has a gradient too; it has an optimiser of its own and no
        average, and is no part of the model. None: there is none."""
        ...

    def losses(self, network: nn.Module, batch: Batch, t: Tensor, noise: Tensor) -> Tensor:
        """The loss of each datum, [N] in x0's precision; training minimises its mean.

        Args:
            t: [N] int64, or ln(σ/a) in continuous time.
            noise: standard normal, shaped like x0.
        """
        ...


@dataclass(frozen=True)
class Denoise:
    """A diffusion model's objective, of a network that may have a condition.

    Attributes:
        drop: of each column that is dropped, by its name: the share of the data in which its null value takes its
            place, so that classifier-free guidance can be had (Ho & Salimans 2022, algorithm 1).
        together: columns are dropped by the same random number, so that one with a smaller share is dropped only where
            the others are; else each by its own.
    """

    process: GaussianProcess
    objective: Objective = L_SIMPLE
    columns: Sequence[Column] = ()
    drop: Mapping[str, float] = field(default_factory=dict)
    together: bool = True
    opponent: ClassVar[None] = None

    @property
    def timesteps(self) -> int:
        return self.process.timesteps

    @property
    def distribution(self) -> tuple[float, float] | None:
        return self.process.coordinates.distribution

    @property
    def draws(self) -> int:
        return self._drop_draws + derived_draws(self.columns)

    @property
    def _drop_draws(self) -> int:
        return min(len(self.drop), 1) if self.together else len(self.drop)

    def losses(self, network: nn.Module, batch: Batch, t: Tensor, noise: Tensor) -> Tensor:
        given = dict(batch.given)
        if batch.uniform is not None:
            own, others = batch.uniform.tensor_split([self._drop_draws], dim=1)
            missing = [column for column in self.columns if column.name not in given]
            given |= derived(missing, batch.x0, others)
            given = dropped(self.columns, given, self.drop, own)
        return self.objective.training_losses(self.process, bind(network, given), batch.x0, t, noise)


@dataclass(frozen=True)
class Reconstruct:
    """The negative evidence lower bound of an autoencoder (Kingma & Welling 2014), which has no timesteps.

    Attributes:
        weight: of the squared error beside the KL, 1/(2 variance) of a number given z.
    """

    weight: float = 1.0
    timesteps: int = 1
    distribution: tuple[float, float] | None = None
    draws: int = 0
    columns: Sequence[Column] = ()
    opponent: ClassVar[None] = None

    def losses(self, network: nn.Module, batch: Batch, t: Tensor, noise: Tensor) -> Tensor:
        return negative_elbo(cast("Autoencoder", network), batch.x0, noise, self.weight)


@dataclass(frozen=True)
class Classify:
    """Cross-entropy of a classifier on noisy data x_t (Dhariwal & Nichol 2021, §4).

    Attributes:
        columns: the label alone, which the network answers.
    """

    process: GaussianProcess
    columns: Sequence[Column]
    draws: int = 0
    opponent: ClassVar[None] = None
    distribution: tuple[float, float] | None = None

    @property
    def timesteps(self) -> int:
        return self.process.timesteps

    def losses(self, network: nn.Module, batch: Batch, t: Tensor, noise: Tensor) -> Tensor:
        logits = network(*self.process.told(self.process.q_sample(batch.x0, t, noise), t))
        (column,) = self.columns
        return F.cross_entropy(logits.to(batch.x0.dtype), batch.given[column.name], reduction="none")
