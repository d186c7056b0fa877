"""The caption as a condition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ddpm.conditioning.conditioner import Conditioner
from ddpm.nets.condition import Condition, Ports
from ddpm.nets.text import TextTransformer

# Of the encoder, where the section does not say: GLIDE's.
SIZES = {"width": 512, "layers": 16, "heads": 8}


class Text(Conditioner):
    """A caption as tokens that every attention attends to, and a vector that joins the timestep's embedding: a
    projection of the encoder's last position (Nichol et al. 2022, GLIDE, §4.1).

    No caption is the empty one, of padding alone. The tokens have no mask, because padding has embeddings of its own.
    """

    saved_as = "text"
    fills = frozenset({"vector", "tokens"})

    @classmethod
    def needs(cls, columns: Sequence[Any], options: Mapping[str, Any]) -> Ports:
        return Ports(tokens=_sizes(options)["width"])

    def __init__(self, columns: Sequence[Any], width: int, options: Mapping[str, Any]) -> None:
        """
        Args:
            columns: one with `shape` [L] and a `tokenizer` that has `size`, the number of ids, and the id `padding`.
            width: of the vector.
            options: `width`, `layers` and `heads` of the encoder.

        Raises:
            ValueError: the heads do not divide the width.
        """
        super().__init__()
        (self._column,) = columns
        (length,), sizes = self._column.shape, _sizes(options)
        self.encoder = TextTransformer(self._column.tokenizer.size, length, **sizes)
        self.projection = nn.Linear(sizes["width"], width)

    def forward(self, given: Mapping[str, Tensor]) -> Condition:
        """`prompt` [N, L] int64 → the ports `vector` and `tokens`."""
        ids = given[self._column.name]
        tokens = self.encoder(ids, ids != self._column.tokenizer.padding)
        return Condition(vector=self.projection(tokens[:, -1]), tokens=tokens)


def _sizes(options: Mapping[str, Any]) -> dict[str, int]:
    return {name: options.get(name, size) for name, size in SIZES.items()}
