"""The class as a condition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ddpm.conditioning.conditioner import Conditioner
from ddpm.nets.condition import Condition


class Labels(Conditioner):
    """A class as a vector that joins the timestep's embedding (Nichol & Dhariwal 2021; Dhariwal & Nichol 2021).

    The null class of classifier-free guidance is one more row (Ho & Salimans 2022).
    """

    saved_as = "conditioner"  # from when it was the only one
    fills = frozenset({"vector"})

    def __init__(self, columns: Sequence[Any], width: int, options: Mapping[str, Any]) -> None:
        """
        Args:
            columns: one `LabelColumn`.
            width: of the vector.
            options: with `perceptron`: rows of width / 4, which two layers widen as they do the timestep's sines and
                cosines.
        """
        super().__init__()
        (self._column,) = columns
        perceptron = options.get("perceptron", False)
        row = width // 4 if perceptron else width
        self.embedding = nn.Embedding(len(self._column.classes) + self._column.droppable, row)
        layers = [nn.Linear(row, width), nn.GELU(), nn.Linear(width, width)] if perceptron else []
        self.perceptron = nn.Sequential(*layers)

    def forward(self, given: Mapping[str, Tensor]) -> Condition:
        """`label` [N] int64 → the port `vector`, [N, width]."""
        return Condition(vector=self.perceptron(self.embedding(given[self._column.name])))
