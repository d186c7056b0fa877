"""What a model is measured by under many plans: few figures, each cheap, without intervals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ddpm.config.params import Params
from ddpm.data.store import SPLITS, PreparedData, SplitName
from ddpm.evaluation.alignment import judge_of
from ddpm.evaluation.distances import MAX_COUNT, chosen, wasserstein
from ddpm.evaluation.extractor import Features, coordinates, load_coordinates, load_extractor
from ddpm.evaluation.features import cached_features, extract
from ddpm.evaluation.metrics import frechet_distance, inception_score, precision_recall
from ddpm.evaluation.pictures import grid
from ddpm.evaluation.plots import SHOWN, side_by_side
from ddpm.evaluation.progress import Show, unseen
from ddpm.evaluation.requirements import NEIGHBOURHOOD, score_splits
from ddpm.evaluation.retrieval import Captioned, retrieval
from ddpm.layout import EXTRACTOR, FEATURES

SHOWN_IMAGES, GRID_COLUMNS = 16, 4


class Scores(Protocol):
    """How far what is drawn is from the training data, and what it looks like, for one kind of data."""

    key: str
    """Of the figure that models are ranked by, as metrics.json has it."""
    shown: int
    """Data a picture."""
    least: int
    """Data that `figures` needs."""
    identity: dict[str, Any]

    def distance(self, drawn: Iterable[NDArray[Any]], count: int) -> float:
        """The figure `key` of `count` data that come in batches."""
        ...

    def figures(
        self, drawn: Iterable[NDArray[Any]], count: int, captioned: Captioned | None = None
    ) -> dict[str, float]:
        """That figure and those that are to be seen with it, by their keys in metrics.json.

        Args:
            captioned: the captions asked for; None: of a model that is not conditioned on captions.
        """
        ...

    def pictures(self, names: Sequence[str], drawn: Sequence[NDArray[Any]]) -> list[Image.Image]:
        """Of what each model has drawn: a picture a model, or one of all, with their names."""
        ...


class ImageScores:
    """FID, beside it IS, precision and recall; a grid a model."""

    key, shown, least = "fid", SHOWN_IMAGES, NEIGHBOURHOOD + 1

    def __init__(self, params: Params, data: PreparedData, root: Path, device: torch.device, show: Show) -> None:
        self._extractor = load_extractor(root / EXTRACTOR, weights=params.extractor.weights, device=device)
        self._params, self._data, self._features, self._show = params, data, root / FEATURES, show
        self._root, self._device = root, device
        self.identity = self._extractor.identity

    @cached_property
    def _reference(self) -> torch.Tensor:
        """The features of the real images that samples are held against, [N, F]; not before they are needed, since they
        may take long.
        """
        return self._of(self._data.reference(self._params.evaluation.reference))

    def _of(self, names: Sequence[SplitName]) -> torch.Tensor:
        """The features of the real images of splits, [N, F]."""
        splits = [
            cached_features(self._extractor, self._data.split(name), self._features, self._show) for name in names
        ]
        return torch.cat([split.features for split in splits])

    def distance(self, drawn: Iterable[NDArray[np.uint8]], count: int) -> float:
        return frechet_distance(extract(self._extractor, drawn, count).features, self._reference)

    def figures(
        self, drawn: Iterable[NDArray[np.uint8]], count: int, captioned: Captioned | None = None
    ) -> dict[str, float]:
        ranked = captioned and retrieval(captioned.tokenizer, captioned.asked, self._data, self._of(SPLITS))
        judge = judge_of(
            self._params.evaluation.clip,
            captioned and captioned._replace(held_out=[]),
            self._data,
            seed=self._params.seed,
            root=self._root,
            device=self._device,
        )

        def rank(images: NDArray[np.uint8], features: Features) -> None:
            if ranked:
                ranked.add(images, features.features)
            if judge:
                judge.add(images)

        found = extract(self._extractor, drawn, count, rank)
        options = self._params.evaluation.model_copy(update={"samples": count})
        splits = score_splits(options, len(self._data.split("validation")))
        precision, recall = precision_recall(found.features, self._reference)
        return {
            "fid": frechet_distance(found.features, self._reference),
            "inception_score": inception_score(found.logits, splits)[0],
            "precision": precision,
            "recall": recall,
            **(ranked.figures("retrieval") if ranked else {}),
            **(judge.figures() if judge else {}),
        }

    def pictures(self, names: Sequence[str], drawn: Sequence[NDArray[np.uint8]]) -> list[Image.Image]:
        return [grid(images, GRID_COLUMNS) for images in drawn]


class ValueScores:
    """Wasserstein distance; all models' data beside real ones, on the same axes."""

    key, shown, least = "wasserstein", SHOWN, 2

    def __init__(self, params: Params, data: PreparedData, root: Path, device: torch.device, show: Show) -> None:
        self.identity = load_coordinates(root / EXTRACTOR)
        self._codec, self._seed = data.codec, params.seed
        self._train, self._validation = data.split("train"), data.split("validation")
        self._real = self._validation.rows(chosen(len(self._validation), SHOWN, params.seed))

    def distance(self, drawn: Iterable[NDArray[np.float32]], count: int) -> float:
        values = np.concatenate(list(drawn))
        # As many as an evaluation takes, whose figures are the same then.
        count = min(count, MAX_COUNT, len(self._train), len(self._validation))
        reference = self._train.rows(chosen(len(self._train), count, self._seed))
        return wasserstein(coordinates(self._codec, values[:count]), coordinates(self._codec, reference))

    def figures(
        self, drawn: Iterable[NDArray[np.float32]], count: int, captioned: Captioned | None = None
    ) -> dict[str, float]:
        return {self.key: self.distance(drawn, count)}

    def pictures(self, names: Sequence[str], drawn: Sequence[NDArray[np.float32]]) -> list[Image.Image]:
        titles = [name.replace("$", r"\$") for name in names]  # which would begin a formula
        return [side_by_side([("real", self._real), *zip(titles, drawn, strict=True)])]


def scores_of(
    params: Params, data: PreparedData, root: Path, device: torch.device, show: Show = unseen
) -> ImageScores | ValueScores:
    """What measures this kind of data.

    Raises:
        UserError: the extractor is missing or damaged, or of another kind of data.
    """
    return (ImageScores if data.codec.pictures else ValueScores)(params, data, root, device, show)
