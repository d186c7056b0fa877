"""Whether samples show what their captions say, by a trained CLIP: CLIP score and R-precision."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm.conditioning.tokenizers import Tokenizer
from ddpm.data.store import SPLITS, PreparedData
from ddpm.errors import UserError
from ddpm.evaluation.accessory import open_space
from ddpm.evaluation.bootstrap import interval, share_interval
from ddpm.evaluation.retrieval import Captioned
from ddpm.files import sha256_of
from ddpm.joint_space import JointSpace
from ddpm.layout import find_model

CANDIDATES = 100  # captions that a sample's own is to be the best of, itself included (Xu et al. 2018, AttnGAN, §4)
_SHOWN_DIGITS = 12  # of a hash in a protocol


def judge_mark(name: str | None, root: Path) -> str | None:
    """By what a protocol names the CLIP of `evaluation.clip`: its name and the start of its weights' SHA-256.

    Raises:
        UserError: there is no such model.
    """
    if name is None:
        return None
    try:
        directory = find_model(name, exported=False, root=root)
    except UserError as error:
        raise UserError(f"evaluation.clip: {error}") from None
    return f"{Path(name).name} {sha256_of(directory / 'model.safetensors')[:_SHOWN_DIGITS]}"


class Alignment:
    """The cosine of each sample with its own caption, and whether that is the best of `CANDIDATES` captions.

    The others are drawn at random from the captions of the data, for each sample anew, by the seed and the sample's
    number. Captions that are the same tokens to the CLIP are the same.
    """

    def __init__(self, space: JointSpace, texts: Sequence[str], data: PreparedData, seed: int) -> None:
        """
        Args:
            texts: the caption of each sample, in their order.
        """
        tokenizer = space.column.tokenizer
        known = [text for name in SPLITS for own in data.split(name).captions or () for text in own]
        ids, _ = tokenizer.encode([*known, *texts])
        different, numbers = np.unique(ids, axis=0, return_inverse=True)
        numbers = numbers.reshape(-1)
        self._space, self._seed = space, seed
        self._vectors = space.tokens(different)
        self._pool, self._own = np.unique(numbers[: len(known)]), numbers[len(known) :]
        self._cosines: list[float] = []
        self._best: list[bool] = []
        self._chance: list[float] = []

    def add(self, drawn: NDArray[np.uint8]) -> None:
        """Take the next samples into account, [n, H, W, C]."""
        for vector in self._space.images(drawn):
            place = len(self._cosines)
            own = self._own[place]
            cosine = float(vector @ self._vectors[own])
            self._cosines.append(cosine)
            others = self._vectors[self._others(place, own)]
            self._best.append(bool((others @ vector <= cosine).all()))
            self._chance.append(1 / (1 + len(others)))

    def _others(self, place: int, own: int) -> NDArray[np.int64]:
        """The captions that a sample's own has to be better than."""
        pool = self._pool[self._pool != own]
        random = np.random.RandomState(np.random.SeedSequence([self._seed, place]).generate_state(1))
        return random.permutation(pool)[: CANDIDATES - 1]

    def figures(self, ending: str = "") -> dict[str, float]:
        """Of all samples, with 95 % intervals:

        - `clip_score`: 100 × the mean of max(cos, 0) (Hessel et al. 2021, eq. 1, whose scale is 2.5 and not 100).
        - `r_precision`: the share of samples whose own caption is the best, and what guesses score.

        Args:
            ending: of the keys.
        """
        cosines, count = 100 * np.maximum(self._cosines, 0), len(self._cosines)
        score, share = float(cosines.mean()), float(np.mean(self._best))
        ends = {
            f"clip_score{ending}": interval(score, float(cosines.std()) / count**0.5),
            f"r_precision{ending}": share_interval(share, count),
        }
        figures = {f"clip_score{ending}": score, f"r_precision{ending}": share}
        for key, (low, high) in ends.items():
            figures |= {f"{key}_low": low, f"{key}_high": high}
        return figures | {f"r_precision{ending}_chance": float(np.mean(self._chance))}


class Judge:
    """CLIP score and R-precision of a model's samples: of the training captions that it is asked for, of captions that
    training has not seen, and of real validation images with their own captions."""

    def __init__(self, space: JointSpace, captioned: Captioned, data: PreparedData, seed: int) -> None:
        texts = texts_of(captioned.asked, captioned.tokenizer, data)
        self._of = {"": Alignment(space, texts, data, seed)}
        if captioned.held_out:
            self._of["_held_out"] = Alignment(space, captioned.held_out, data, seed)
        split = data.split("validation")
        real = Alignment(space, [own[0] for own in split.captions or ()], data, seed)
        for images in split.batches(256):
            real.add(images)
        self._real = real.figures("_real")

    def add(self, drawn: NDArray[np.uint8]) -> None:
        """Take the next samples into account, [n, H, W, C]."""
        self._of[""].add(drawn)

    def add_held_out(self, drawn: NDArray[np.uint8]) -> None:
        """Take the next samples of held-out captions into account, [n, H, W, C]."""
        self._of["_held_out"].add(drawn)

    def figures(self) -> dict[str, float]:
        """As of `Alignment.figures`: plain, `…_held_out`, and of real images `…_real`."""
        found = {key: value for ending, each in self._of.items() for key, value in each.figures(ending).items()}
        return found | {key: self._real[key] for key in ("clip_score_real", "r_precision_real")}


def texts_of(asked: NDArray[np.int64], tokenizer: Tokenizer, data: PreparedData) -> list[str]:
    """The training captions that tokens [N, L] were made of; of several that are the same tokens the first.

    Raises:
        UserError: one is of no training caption, as of a model of other captions.
    """
    captions = [text for own in data.split("train").captions or () for text in own]
    ids, _ = tokenizer.encode(captions)
    known = {row.tobytes(): text for row, text in zip(ids[::-1], captions[::-1], strict=True)}
    try:
        return [known[row.tobytes()] for row in asked]
    except KeyError:
        raise UserError(
            "evaluation.clip: the model is asked for captions that the prepared data have not: it was trained on others"
        ) from None


def judge_of(
    name: str | None,
    captioned: Captioned | None,
    data: PreparedData,
    *,
    seed: int,
    root: Path,
    device: torch.device,
) -> Judge | None:
    """What `evaluation.clip` measures a model with captions by; None without one, or without captions.

    Raises:
        UserError: there is no such CLIP, or it is of other images.
    """
    if name is None or captioned is None:
        return None
    _, space = open_space(name, data.codec, "evaluation.clip", root, device)
    return Judge(space, captioned, data, seed)
