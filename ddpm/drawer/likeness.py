"""Pictures like given ones, by their embeddings: variations, interpolations, differences of texts (Ramesh et al. 2022,
§3; numpy only)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ddpm.conditioning.columns import PromptColumn
from ddpm.directions import slerp, unit

MOST_MIXED = 1024
STRENGTH = 0.4  # share of the arc from a picture to a difference of texts; the paper's are 0.25 to 0.5


class Encoder(Protocol):
    """A CLIP, which puts pictures and texts in one space."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a picture, [H, W, C]."""
        ...

    @property
    def column(self) -> PromptColumn:
        """How it reads texts."""
        ...

    def images(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Pictures [N, H, W, C] → embeddings [N, D] of length 1."""
        ...

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """As of `images`."""
        ...


@dataclass(frozen=True)
class Likeness:
    """What pictures are to be like.

    Attributes:
        pictures: [n, H, W, C] uint8, as large as the encoder's.
        mix: how many steps there are from the first of two pictures to the second, or from a picture along a
            difference of texts; None: datum i is like the picture at i modulo n.
        change: two texts, of what the picture is and what it is to become; None: no difference of texts.
        strength: the share of the arc to the difference of texts.
    """

    pictures: NDArray[np.uint8]
    mix: int | None = None
    change: tuple[str, str] | None = None
    strength: float = STRENGTH

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: these do not go together.
        """
        count = len(self.pictures)
        if self.change is not None and count != 1:
            raise ValueError(f"like: a difference of texts (from, to) changes one picture; found {count}")
        if self.change is None and self.mix is not None and count != 2:
            raise ValueError(f"mix goes from one picture to another; expected two in `like`, found {count}")
        least = 2 if self.change is None else 1  # one step has no place for the first of two pictures
        if self.mix is not None and not least <= self.mix <= MOST_MIXED:
            raise ValueError(f"mix must be in {least}..{MOST_MIXED}, found {self.mix}")
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength must be above 0 and at most 1, found {self.strength:g}")

    @property
    def steps(self) -> int | None:
        """How many data are drawn of the same noise; None: variations, each of its own noise."""
        return self.mix if self.change is None else self.mix or 1

    def embeddings(self, encoder: Encoder) -> NDArray[np.float32]:
        """The embeddings to draw, [steps, D]; of variations those of the pictures.

        Raises:
            ValueError: there is no one way from the first to the last.
        """
        found = encoder.images(self.pictures)
        if self.steps is None:
            return found
        start, *others = found
        end, most = (
            (others[0], 1.0) if self.change is None else (difference(*encoder.texts(self.change)), self.strength)
        )
        return slerp(start, end, np.linspace(most, 0, self.steps)[::-1])


def difference(before: NDArray[Any], after: NDArray[Any]) -> NDArray[np.float32]:
    """The direction from the embedding of one text to that of another, [D] (Ramesh et al. 2022, §3.3).

    Raises:
        ValueError: both texts have the same embedding.
    """
    found = unit(after.astype(np.float64) - before)
    if not found.any():
        raise ValueError("`from` and `to` are the same to the model: there is no difference of texts")
    return found
