"""Whether a picture shows what its caption says: the rank of the asked picture among all real ones, nearest first.

No network that knows words is needed, only the data's own captions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm.conditioning.tokenizers import Tokenizer
from ddpm.data.store import SPLITS, PreparedData, Split
from ddpm.evaluation.bootstrap import share_interval

PLACES = (1, 5)  # R@1 and R@5
SPACES = ("pixels", "features")

ROWS = 500  # samples, and real pictures, between which there are distances at a time

# The real pictures in order, [m, D] at a time; each call begins anew.
Pictures = Callable[[], Iterable[Tensor]]


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Of points [N, D] and [M, D]: [N, M] float64. Exact for 8-bit levels, whose squares and sums are whole numbers."""
    a, b = a.double(), b.double()
    return a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T


def ranks(samples: Tensor, pictures: Pictures, right: Tensor) -> Tensor:
    """The place, from 1, of the nearest right picture among all, by distance to the sample.

    Of equally distant pictures the right one comes first. The pictures are gone through twice, so that there are
    distances to one part of them at a time.

    Args:
        samples: [N, D].
        pictures: M of them.
        right: [N, M] bool, which pictures are right for a sample: at least one.

    Returns:
        [N] int64, in 1..M.
    """
    nearest = torch.full((len(samples), 1), torch.inf, dtype=torch.float64)
    for distances, own in _parts(samples, pictures, right):
        nearest = nearest.minimum(distances.masked_fill(~own, torch.inf).amin(1, keepdim=True))
    # Distances that are computed twice may differ by rounding: no right picture is nearer than the nearest one.
    nearer = [((distances < nearest) & ~own).sum(1) for distances, own in _parts(samples, pictures, right)]
    return 1 + torch.stack(nearer).sum(0)


def _parts(samples: Tensor, pictures: Pictures, right: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each part of the pictures the distances [N, m] and which of its pictures are right [N, m]."""
    first = 0
    for part in pictures():
        yield squared_distances(samples, part), right[:, first : first + len(part)]
        first += len(part)


def chance(right: Tensor, pictures: int, place: int) -> Tensor:
    """The probability that a random order of the pictures has a right one among the first `place`.

    Args:
        right: how many pictures are right for each sample, [N].
        pictures: M, how many there are.

    Returns:
        [N] float64: 1 − Π_{j < place} (M − right − j) / (M − j).
    """
    taken = torch.arange(min(place, pictures), dtype=torch.float64)
    wrong = (pictures - right.double()[:, None] - taken).clamp(min=0)
    return 1 - (wrong / (pictures - taken)).prod(1)


class AskedPictures:
    """Which real pictures have the caption that is asked for: all that have it, and each by any of its captions.

    Captions are the same if they are the same tokens: a model cannot tell such captions apart.
    """

    def __init__(self, asked: NDArray[np.int64], captions: Sequence[tuple[str, ...]], tokenizer: Tokenizer) -> None:
        """
        Args:
            asked: the tokens of each sample's caption, [N, L].
            captions: of each of M real pictures, one or more.
            tokenizer: the model's.
        """
        real, _ = tokenizer.encode(text for own in captions for text in own)
        _, numbers = np.unique(np.concatenate([asked, real]), axis=0, return_inverse=True)
        self._asked, self._captions = torch.from_numpy(numbers.reshape(-1)).split([len(asked), len(real)])
        self._owners = torch.from_numpy(np.repeat(np.arange(len(captions)), [len(own) for own in captions]))
        self._pictures = len(captions)

    def of(self, first: int, count: int) -> Tensor:
        """Which are right for the samples from `first` on, [count, M] bool."""
        found = torch.zeros(count, self._pictures, dtype=torch.bool)
        for row, number in enumerate(self._asked[first : first + count]):
            found[row, self._owners[self._captions == number]] = True
        return found


class Retrieval:
    """The ranks of the asked pictures, of samples that are added a batch at a time."""

    def __init__(self, asked: AskedPictures, real: Sequence[Split], features: Tensor) -> None:
        """
        Args:
            real: the real pictures.
            features: of them in the same order, [M, F].
        """
        self._asked, self._real = asked, real
        self._spaces: tuple[Pictures, Pictures] = (self._pixels, lambda: features.split(ROWS))
        self._pictures = len(features)
        self._ranks: list[Tensor] = []
        self._right: list[Tensor] = []
        self._count = 0

    def _pixels(self) -> Iterator[Tensor]:
        """The levels 0..255 of the real pictures, [m, H·W·C] at a time."""
        for split in self._real:
            for part in split.batches(ROWS):
                yield torch.from_numpy(part).flatten(1)

    def add(self, images: NDArray[np.uint8], features: Tensor) -> None:
        """Take samples [n, H, W, C] with their features [n, F] into account."""
        pixels = torch.from_numpy(images).flatten(1)
        for first in range(0, len(images), ROWS):
            rows = slice(first, first + ROWS)
            right = self._asked.of(self._count, len(pixels[rows]))
            both = zip((pixels[rows], features[rows]), self._spaces, strict=True)
            self._ranks.append(torch.stack([ranks(samples, real, right) for samples, real in both]))
            self._right.append(right.sum(1))
            self._count += len(right)

    @property
    def ranks(self) -> dict[str, Tensor]:
        """The place of the nearest right picture for each sample, by space, [N]."""
        return dict(zip(SPACES, torch.cat(self._ranks, dim=1), strict=True))

    def figures(self, name: str) -> dict[str, float]:
        """The share of samples for which a right picture is among the nearest 1 and 5, by distance in pixels and in
        features, with 95 % intervals; and what a random order has.

        Args:
            name: what the keys begin with.
        """
        found, right = self.ranks, torch.cat(self._right)
        figures: dict[str, float] = {}
        for place in PLACES:
            for space, own in found.items():
                key, share = f"{name}_{place}_{space}", float((own <= place).double().mean())
                low, high = share_interval(share, len(own))
                figures |= {key: share, f"{key}_low": low, f"{key}_high": high}
            figures[f"{name}_{place}_chance"] = float(chance(right, self._pictures, place).mean())
        return figures


def retrieval(tokenizer: Tokenizer, asked: NDArray[np.int64], data: PreparedData, features: Tensor) -> Retrieval:
    """Of samples that are asked for captions, among all real pictures.

    Args:
        tokenizer: the model's.
        asked: the tokens of each sample's caption, [N, L].
        data: with captions.
        features: of the training pictures and then of those of validation, [M, F].
    """
    real = [data.split(name) for name in SPLITS]
    captions = [texts for split in real for texts in split.captions or ()]
    return Retrieval(AskedPictures(asked, captions, tokenizer), real, features)


class Captioned(NamedTuple):
    """What a model that is conditioned on captions is asked for."""

    tokenizer: Tokenizer
    asked: NDArray[np.int64]
    """The tokens of each sample's caption, drawn from the training captions, [N, L]."""
    held_out: list[str]
    """The captions of the samples that are drawn besides, which training has not seen."""

    @property
    def asked_held_out(self) -> NDArray[np.int64]:
        """The tokens of those, [M, L]."""
        return self.tokenizer.encode(self.held_out)[0]


def evenly(captions: Sequence[tuple[str, ...]], count: int) -> list[str]:
    """`count` of the captions of pictures, at even distances: all, several times, or if there are more some of them."""
    texts = [text for own in captions for text in own]
    return [texts[place * len(texts) // count] for place in range(count if texts else 0)]
