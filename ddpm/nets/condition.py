"""What a network is told beside x and t, and what all networks have in common."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

from torch import Tensor, nn


class Condition(NamedTuple):
    """What conditions one evaluation of a network. All of it enters by one of four ports; None: nothing enters there.

    Attributes:
        vector: [N, E], added to the embedding of the timestep.
        tokens: [N, L, D], for cross-attention.
        mask: [N, L] bool, which of the tokens are there.
        maps: [N, K, *sides], concatenated to x.
    """

    vector: Tensor | None = None
    tokens: Tensor | None = None
    mask: Tensor | None = None
    maps: Tensor | None = None


NOTHING = Condition()


class Network(nn.Module):
    """A map from (x [N, C, ...], t [N], condition) to an output shaped like x, or with more channels if asked to.

    Attributes:
        axes: numbers of axes of a datum, beside its channels, that the network can be built for.
        takes: the ports of a `Condition` that it has.
        vector_width: E of the port `vector`.
    """

    axes: ClassVar[tuple[int, ...]]
    takes: ClassVar[frozenset[str]] = frozenset()
    vector_width: int = 0

    def forward(self, x: Tensor, t: Tensor, c: Condition = NOTHING) -> Tensor:
        """One evaluation."""
        raise NotImplementedError


def embedded(time: Tensor, c: Condition) -> Tensor:
    """The embedding of the timestep [N, E] with what comes in by the port `vector`."""
    return time if c.vector is None else time + c.vector
