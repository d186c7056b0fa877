"""A network with its condition: columns in, the ports of `nets.condition` out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ddpm.conditioning.columns import Column, Given, blank, unconditional_values
from ddpm.conditioning.conditioner import Conditioner
from ddpm.conditioning.control import Control
from ddpm.conditioning.embedding import ImageEmbedding
from ddpm.conditioning.inpainting import Inpainting
from ddpm.conditioning.labels import Labels
from ddpm.conditioning.low import LowResolution
from ddpm.conditioning.text import Text
from ddpm.diffusion.sampling import Denoiser
from ddpm.errors import listed
from ddpm.nets.condition import Condition, Network, Ports, merged

# What tells a network the columns of a key of `condition`; `conditioning.columns.COLUMNS` has the columns.
CONDITIONERS: dict[str, type[Conditioner]] = {
    "label": Labels,
    "prompt": Text,
    "embedding": ImageEmbedding,
    "mask": Inpainting,
    "low": LowResolution,
    "control": Control,
}


class ConditionalNetwork(nn.Module):
    """A network and what turns its columns into a condition, as one module: they train and are saved together."""

    def __init__(self, network: Network, columns: Sequence[Column], condition: Mapping[str, Any] | None = None) -> None:
        """
        Args:
            columns: of any number of conditioners, as `columns_of` has them.
            condition: the section `condition`, as JSON has it; None: the defaults of each conditioner.

        Raises:
            ValueError: the network has no port for one of them.
        """
        super().__init__()
        self.columns = tuple(columns)
        self.network = network
        self.saved_as = []
        for key, own in by_key(columns).items():
            kind = CONDITIONERS[key]
            if missing := sorted(kind.fills - network.takes):
                raise ValueError(
                    f"condition.{key}: the network takes no {listed(missing) if network.takes else 'condition'}"
                )
            self.add_module(kind.saved_as, kind(own, network.vector_width, (condition or {}).get(key) or {}))
            self.saved_as.append(kind.saved_as)

    @property
    def conditioners(self) -> list[nn.Module]:
        """One for each key of `condition`, in the order of the columns."""
        return [self.get_submodule(name) for name in self.saved_as]

    def forward(self, x: Tensor, t: Tensor, given: Mapping[str, Tensor] | None = None) -> Tensor:
        """
        Args:
            x: [N, C, ...].
            t: [N].
            given: a value of each column, [N, ...]. None: the null condition, or zeros of a column without one;
                operations and memory are counted with it.
        """
        values = tensors(blank(self.columns, len(x)), x.device) if given is None else given
        return self.network(x, t, self.condition(values))

    def condition(self, values: Mapping[str, Tensor]) -> Condition:
        """The network's condition, made of a value of each column."""
        return merged([conditioner(values) for conditioner in self.conditioners])


def ports_for(columns: Sequence[Column], condition: Mapping[str, Any]) -> Ports:
    """How wide the ports of a network have to be for its columns.

    Args:
        condition: as of `ConditionalNetwork`.

    Raises:
        ValueError: two conditioners have tokens of different widths.
    """
    needed = [CONDITIONERS[key].needs(own, condition.get(key) or {}) for key, own in by_key(columns).items()]
    widths = {ports.tokens for ports in needed} - {0}
    if len(widths) > 1:
        raise ValueError(f"condition: tokens of one width are needed, found {sorted(widths)}")
    return Ports(
        tokens=max(widths, default=0),
        maps=sum(ports.maps for ports in needed),
        hints=tuple(hint for ports in needed for hint in ports.hints),
        length=sum(ports.length for ports in needed),
    )


def by_key(columns: Iterable[Column]) -> dict[str, list[Column]]:
    """The columns by the key of `condition` that asks for them."""
    keys: dict[str, list[Column]] = {}
    for column in columns:
        keys.setdefault(column.key, []).append(column)
    return keys


def columns_in(network: nn.Module) -> tuple[Column, ...]:
    """The columns of a network; none of an unconditional one."""
    return getattr(network, "columns", ())


def answered_by(network: nn.Module) -> tuple[Column, ...]:
    """The columns whose value a network tells of a noisy datum: of a classifier its classes, of others none."""
    return getattr(network, "answers", ())


def bind(network: nn.Module, given: Mapping[str, Tensor]) -> Denoiser:
    """The network with its condition: what process, likelihood and executors know as a denoiser."""
    if not given:
        return network
    return lambda x, t: network(x, t, given)


def tensors(given: Given, device: torch.device) -> dict[str, Tensor]:
    """The values of columns as tensors on a device."""
    return {name: torch.from_numpy(values).to(device) for name, values in given.items()}


def unconditional(columns: Sequence[Column], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The given values, with the null value in place of each column that has one: what guidance moves away from."""
    return {
        column.name: unconditional_values(column, given[column.name], torch.full_like)
        for column in columns
        if column.name in given
    }


def dropped(
    columns: Sequence[Column], given: Mapping[str, Tensor], drop: Mapping[str, float], uniform: Tensor
) -> dict[str, Tensor]:
    """The given values, with a column's null value where its number is below its share.

    Args:
        drop: the share of each column that is dropped at all, by its name.
        uniform: in [0, 1). [N, 1]: the columns are dropped together, by the same number; [N, len(drop)]: each by its
            own.
    """
    null, values = unconditional(columns, given), dict(given)
    for name, numbers in zip(drop, uniform.expand(-1, len(drop)).unbind(1), strict=True):
        away = (numbers < drop[name]).view(-1, *[1] * (values[name].ndim - 1))
        values[name] = torch.where(away, null[name], values[name])
    return values
