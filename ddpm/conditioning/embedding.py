"""The embedding of a picture as a condition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ddpm.conditioning.conditioner import Conditioner
from ddpm.nets.condition import Condition, Ports


class ImageEmbedding(Conditioner):
    """An embedding as a vector that joins the timestep's embedding, and as tokens beside those of a text (Ramesh et al.
    2022, §2.1: four tokens)."""

    saved_as = "embedding"
    fills = frozenset({"vector", "tokens"})

    @classmethod
    def needs(cls, columns: Sequence[Any], options: Mapping[str, Any]) -> Ports:
        return Ports(tokens=options["width"], length=options["tokens"])

    def __init__(self, columns: Sequence[Any], width: int, options: Mapping[str, Any]) -> None:
        """
        Args:
            columns: one `EmbeddingColumn`.
            width: of the vector.
            options: how many `tokens`, and their `width`.
        """
        super().__init__()
        (self._column,) = columns
        (numbers,) = self._column.shape
        self._scale, self._tokens = numbers**0.5, (options["tokens"], options["width"])
        self.vector = nn.Linear(numbers, width)
        self.tokens = nn.Linear(numbers, options["tokens"] * options["width"])

    def forward(self, given: Mapping[str, Tensor]) -> Condition:
        """`embedding` [N, D] of length 1 → the ports `vector` and `tokens`."""
        x = given[self._column.name] * self._scale  # of about unit variance
        return Condition(vector=self.vector(x), tokens=self.tokens(x).unflatten(1, self._tokens))
