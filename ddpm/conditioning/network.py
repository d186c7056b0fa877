"""A network with its condition: columns in, one of the ports of `nets.condition` out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ddpm.conditioning.columns import Column, Given, LabelColumn, blank
from ddpm.diffusion.sampling import Denoiser
from ddpm.nets.condition import Condition, Network


class Labels(nn.Module):
    """A class as a vector that joins the timestep's embedding (Nichol & Dhariwal 2021; Dhariwal & Nichol 2021).

    The null class of classifier-free guidance is one more row (Ho & Salimans 2022).
    """

    def __init__(self, column: LabelColumn, width: int, *, perceptron: bool = False) -> None:
        """
        Args:
            width: of the vector.
            perceptron: rows of width / 4, which two layers widen as they do the timestep's sines and cosines.
        """
        super().__init__()
        row = width // 4 if perceptron else width
        self.embedding = nn.Embedding(len(column.classes) + column.droppable, row)
        layers = [nn.Linear(row, width), nn.GELU(), nn.Linear(width, width)] if perceptron else []
        self.perceptron = nn.Sequential(*layers)

    def forward(self, label: Tensor) -> Condition:
        """label [N] int64 → the port `vector`, [N, width]."""
        return Condition(vector=self.perceptron(self.embedding(label)))


class ConditionalNetwork(nn.Module):
    """A network and what turns its columns into a condition, as one module: they train and are saved together."""

    def __init__(self, network: Network, columns: Sequence[Column], *, perceptron: bool = False) -> None:
        """
        Args:
            columns: one `LabelColumn`.
            perceptron: see `Labels`.

        Raises:
            ValueError: the network has no port for it.
        """
        super().__init__()
        (column,) = columns
        if not isinstance(column, LabelColumn) or "vector" not in network.takes:
            raise ValueError(f"condition.{column.name}: the network takes no condition")
        self.columns = (column,)
        self.network = network
        self.conditioner = Labels(column, network.vector_width, perceptron=perceptron)

    def forward(self, x: Tensor, t: Tensor, given: Mapping[str, Tensor] | None = None) -> Tensor:
        """
        Args:
            x: [N, C, ...].
            t: [N].
            given: a value of each column, [N, ...]. None: the null condition, or the first class of a network without
                one; operations and memory are counted with it.
        """
        if given is None:
            given = tensors(blank(self.columns, len(x)), x.device)
        (column,) = self.columns
        return self.network(x, t, self.conditioner(given[column.name]))


def columns_in(network: nn.Module) -> tuple[Column, ...]:
    """The columns of a network; none of an unconditional one."""
    return getattr(network, "columns", ())


def answered_by(network: nn.Module) -> tuple[Column, ...]:
    """The columns whose value a network tells of a noisy datum: of a classifier its classes, of others none."""
    return getattr(network, "answers", ())


def bind(network: nn.Module, given: Mapping[str, Tensor]) -> Denoiser:
    """The network told its condition: what process, likelihood and executors know as a denoiser."""
    if not given:
        return network
    return lambda x, t: network(x, t, given)


def tensors(given: Given, device: torch.device) -> dict[str, Tensor]:
    """The values of columns as tensors on a device."""
    return {name: torch.from_numpy(values).to(device) for name, values in given.items()}


def dropped(columns: Sequence[Column], given: Mapping[str, Tensor], drop: float, uniform: Tensor) -> dict[str, Tensor]:
    """The given values, with the null value where `uniform` [N] in [0, 1) is below `drop`: all columns together."""
    null = tensors(blank(columns, len(uniform)), uniform.device)
    away = uniform < drop
    return {
        name: torch.where(away.view(-1, *[1] * (value.ndim - 1)), null[name], value) for name, value in given.items()
    }
