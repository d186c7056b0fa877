"""What all conditioners have in common: columns in, the ports of `nets.condition` out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from ddpm.nets.condition import Condition, Ports


class Conditioner(nn.Module):
    """Turns the columns of one key of `condition` into the condition of a network.

    It is made as `Conditioner(columns, width, options)`: the columns of its key, the width of the network's port
    `vector`, and the key's section as JSON has it.

    Attributes:
        saved_as: what the names of its weights begin with in a model directory.
        fills: the ports that it fills.
    """

    saved_as: ClassVar[str]
    fills: ClassVar[frozenset[str]]

    @classmethod
    def needs(cls, columns: Sequence[Any], options: Mapping[str, Any]) -> Ports:
        """How wide the network's ports have to be for it; the arguments are those of the constructor."""
        return Ports()

    def forward(self, given: Mapping[str, Tensor]) -> Condition:
        """
        Args:
            given: a value of each of the network's columns, [N, ...]; it takes those of its own.
        """
        raise NotImplementedError
