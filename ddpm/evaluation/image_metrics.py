"""How images are measured: FID and its kin in an extractor's features, and whether they copy the training images."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ddpm.config.params import Params
from ddpm.data.store import SPLITS, PreparedData, SplitName
from ddpm.errors import UserError
from ddpm.evaluation.bootstrap import frechet_deviation, interval, score_deviation, share_interval
from ddpm.evaluation.extractor import INCEPTION_FILE, INCEPTION_SHA256, Extractor, Features
from ddpm.evaluation.features import cached_features, extract
from ddpm.evaluation.metrics import (
    class_accuracy,
    frechet_distance,
    frechet_distance_within,
    inception_score,
    kernel_distance,
    nearest,
    precision_recall,
)
from ddpm.evaluation.pictures import WIDTH, grid
from ddpm.evaluation.progress import Done, Show, unseen
from ddpm.evaluation.requirements import check_enough, score_splits
from ddpm.evaluation.retrieval import Captioned, Retrieval, retrieval

GRID_COLUMNS, GRID_IMAGES = 8, 64
GRID_CLASSES = 10  # rows of a conditional model's grid; of more classes, that many are chosen
CLOSEST, NEIGHBOURS = 8, 7
NEAR = 0.05  # share of the held-out images that count as near copies of training images


class ImageMeasure:
    """The figures of generated images, which are added a batch at a time.

    What is kept of each image is its features, float32 [F + K], which KID, precision and recall need all together, and
    not the image: memory grows by kilobytes an image, whatever its size.
    """

    def __init__(
        self,
        params: Params,
        data: PreparedData,
        extractor: Extractor,
        cache: Path,
        show: Show = unseen,
        *,
        asked: NDArray[np.int64] | None = None,
        captioned: Captioned | None = None,
    ) -> None:
        """
        Args:
            cache: a directory for the features of the real images.
            show: the progress of long computations.
            asked: the class asked of each generated image, [evaluation.samples]; None: of an unconditional model.
            captioned: the captions asked for; None: of a model that is not conditioned on captions.

        Raises:
            UserError: the extractor is not the protocol's or not the data's, or there are too few images.
        """
        options = params.evaluation
        self._train_split, validation = data.split("train"), data.split("validation")
        published = data.manifest.rules.validation_fraction is None
        check_enough(options, len(self._train_split), len(validation), published=published)
        if options.features == "inception":
            _check_published(extractor.identity, options.protocol)
        self._extractor, self._show = extractor, show
        self._train = cached_features(self._extractor, self._train_split, cache, show)
        self._validation = cached_features(self._extractor, validation, cache, show)
        whole = len(data.reference(options.reference)) > 1
        self._reference = _both(self._train, self._validation) if whole else self._train
        self._labels = None
        if asked is not None:
            self._labels = _Labels.of(asked, data, data.reference(options.reference), extractor, self._train)
        self._retrievals: dict[str, Retrieval] = {}
        if captioned is not None:
            real = _both(self._train, self._validation).features
            self._retrievals["retrieval"] = retrieval(captioned.tokenizer, captioned.asked, data, real)
            held_out = retrieval(captioned.tokenizer, captioned.asked_held_out, data, real)
            self._retrievals |= {"held_out_retrieval": held_out} if captioned.held_out else {}
        self._splits = score_splits(options, len(validation))
        self._resamples, self._seed = options.resamples, params.seed
        self._features, self._count = self._train.room_for(options.samples), 0
        self._distances = torch.empty(options.samples)
        self._shown = np.empty((0, *data.codec.shape), np.uint8)
        self._by_class = _ByClass(data.manifest.classes or (), data.codec.shape)
        self._neighbours = min(NEIGHBOURS, len(self._train))
        self._closest = _Closest(self._shown, torch.empty(0), torch.empty((0, self._neighbours), dtype=torch.int64))

    def add_held_out(self, generated: NDArray[np.uint8]) -> None:
        """Take images [n, H, W, C] of the held-out captions into account, which have no other figures."""
        features = extract(self._extractor, [generated], len(generated))
        self._retrievals["held_out_retrieval"].add(generated, features.features)

    def add(self, generated: NDArray[np.uint8]) -> None:
        """Take generated images [n, H, W, C] into account, evaluation.samples in all."""
        features = extract(self._extractor, [generated], len(generated))
        distances, positions = nearest(features.features, self._train.features, self._neighbours)
        self._features.put(self._count, features)
        self._distances[self._count : self._count + len(features)] = distances[:, 0]
        if "retrieval" in self._retrievals:
            self._retrievals["retrieval"].add(generated, features.features)
        if self._labels:
            self._by_class.add(generated, self._labels.asked[self._count : self._count + len(features)].numpy())
        self._count += len(features)
        self._shown = np.concatenate([self._shown, generated[: GRID_IMAGES - len(self._shown)]])
        self._closest = self._closest.with_more(generated, distances[:, 0], positions)

    def fid_of(self, images: NDArray[np.uint8]) -> float:
        """The FID of other images [n, H, W, C], which enter nothing else."""
        return frechet_distance(extract(self._extractor, [images], len(images)).features, self._reference.features)

    def figures(self) -> dict[str, float | int]:
        """What the images score, and what real ones do under the same measures.

        - `…_low`, `…_high`: the bootstrap's 95 % interval.
        - `fid_floor`, `kid_floor`: of the real validation images against the training images.
          `inception_score_real`: their IS.
        - `…_same_count`: of as many generated images as there are validation images, against the training images. FID
          and IS depend on the number of images, and only these compare with the real ones.
        - `nearest_distance`: median distance, in feature space, to the nearest training image;
          `nearest_distance_real`: that of the validation images. `near_copies`: the share of generated images that
          are nearer than the nearest twentieth of the validation images; 0.05 is what new images score.
        - `sfid`: of InceptionV3's spatial features alone.
        - `class_accuracy`: the share of images that the extractor's classifier takes for the class that was asked, and
          `class_accuracy_real` that of the validation images; of a conditional model, by an extractor fitted to the
          data's classes alone.
        - `fid_within_classes`: of a conditional model, see `frechet_distance_within`.
        - `retrieval_1_pixels`, `retrieval_5_features` and so on: of a model that is conditioned on captions, see
          `Retrieval.figures`; `held_out_retrieval_…`, of captions that training has not seen.
        """
        generated = self._features[: self._count]
        parts: tuple[Callable[[Features], dict[str, float]], ...]
        parts = (self._score, self._kernel, self._manifold, self._memorisation)
        if self._labels:
            parts = (*parts, functools.partial(self._classes, labels=self._labels))
        # The resamples of the FID take longest.
        with self._show(self._resamples + len(parts), "steps", "figures") as done:
            figures: dict[str, float | int] = {**self._frechet(generated, done)}
            for part in parts:
                figures |= part(generated)
                done(1)
            for name, found in self._retrievals.items():
                figures |= found.figures(name)
        return {**figures, "samples": len(generated), "same_count": self._same_count(generated)}

    def pictures(self) -> dict[str, Image.Image]:
        """File names and pictures: the first images, of a conditional model a row a class; and those nearest to a
        training image with their neighbours.
        """
        closest = self._closest
        rows = [
            np.concatenate([image[None], self._train_split.rows(positions.numpy())])
            for image, positions in zip(closest.images, closest.positions, strict=True)
        ]
        return {
            "samples.png": self._by_class.picture() if self._labels else grid(self._shown, GRID_COLUMNS, width=WIDTH),
            "neighbours.png": grid(np.concatenate(rows), len(rows[0]), width=WIDTH, captions=_captions(len(rows[0]))),
        }

    def _same_count(self, generated: Features) -> int:
        return min(len(self._validation), len(generated))

    def _frechet(self, generated: Features, on_resample: Done) -> dict[str, float]:
        count = self._same_count(generated)
        reference = self._reference.features
        fid = frechet_distance(generated.features, reference)
        deviation = frechet_deviation(
            generated.features, reference, resamples=self._resamples, seed=self._seed, on_resample=on_resample
        )
        low, high = interval(fid, deviation)
        figures = {
            "fid": fid,
            "fid_low": low,
            "fid_high": high,
            "fid_same_count": frechet_distance(_spread(generated, count).features, self._train.features),
            "fid_floor": frechet_distance(_spread(self._validation, count).features, self._train.features),
        }
        if generated.spatial is not None and self._reference.spatial is not None:
            figures["sfid"] = frechet_distance(generated.spatial, self._reference.spatial)
        return figures

    def _score(self, generated: Features) -> dict[str, float]:
        count, splits = self._same_count(generated), self._splits
        score, spread = inception_score(generated.logits, splits)
        deviation = score_deviation(generated.logits, splits, resamples=self._resamples, seed=self._seed)
        low, high = interval(score, deviation)
        return {
            "inception_score": score,
            "inception_score_std": spread,
            "inception_score_low": low,
            "inception_score_high": high,
            "inception_score_same_count": inception_score(_spread(generated, count).logits, splits)[0],
            "inception_score_real": inception_score(_spread(self._validation, count).logits, splits)[0],
        }

    def _kernel(self, generated: Features) -> dict[str, float]:
        kid, spread = kernel_distance(generated.features, self._reference.features)
        floor, _ = kernel_distance(self._validation.features, self._train.features)
        return {"kid": kid, "kid_std": spread, "kid_floor": floor}

    def _manifold(self, generated: Features) -> dict[str, float]:
        precision, recall = precision_recall(generated.features, self._reference.features)
        return {"precision": precision, "recall": recall}

    def _classes(self, generated: Features, labels: _Labels) -> dict[str, float]:
        figures: dict[str, float] = {}
        asked = labels.asked[: len(generated)]
        if labels.classified:
            share = class_accuracy(generated.logits, asked)
            low, high = share_interval(share, len(generated))
            figures = {
                "class_accuracy": share,
                "class_accuracy_low": low,
                "class_accuracy_high": high,
                "class_accuracy_real": class_accuracy(self._validation.logits, labels.validation),
            }
        within = frechet_distance_within(generated.features, asked, self._reference.features, labels.reference)
        return figures if within is None else {**figures, "fid_within_classes": within}

    def _memorisation(self, generated: Features) -> dict[str, float]:
        distances = self._distances[: len(generated)]
        real, _ = nearest(self._validation.features, self._train.features)
        near = real.flatten().quantile(NEAR)
        return {
            "nearest_distance": float(distances.median()),
            "nearest_distance_real": float(real.median()),
            "near_copies": float((distances < near).double().mean()),
        }


class _Labels(NamedTuple):
    """Of the generated images those that were asked for, of the real ones those that they have; int64."""

    asked: torch.Tensor
    reference: torch.Tensor
    validation: torch.Tensor
    classified: bool
    """Whether the extractor says which class an image is of."""

    @classmethod
    def of(
        cls,
        asked: NDArray[np.int64],
        data: PreparedData,
        reference: Sequence[SplitName],
        extractor: Extractor,
        features: Features,
    ) -> _Labels:
        """
        Args:
            reference: the splits that generated images are held against.
            features: of any images, by the extractor.

        Raises:
            UserError: the extractor is a classifier of other classes.
        """
        classes, classified = len(data.manifest.classes or ()), extractor.identity["kind"] == "classifier"
        known = features.logits.shape[1]
        if classified and known != classes:
            raise UserError(
                f"extractor/ was fitted to {known} classes, but the prepared data have {classes}: "
                "run `ddpm fit-extractor`"
            )
        real = {name: torch.from_numpy(data.split(name).labels) for name in SPLITS}
        whole = torch.cat([real[name] for name in reference])
        return cls(torch.from_numpy(asked), whole, real["validation"], classified)


class _ByClass:
    """The first images that are asked for each class."""

    def __init__(self, classes: Sequence[str], shape: tuple[int, ...]) -> None:
        rows = min(len(classes), GRID_CLASSES)
        self._numbers = np.linspace(0, len(classes) - 1, rows).round().astype(int).tolist()
        self._names = [classes[number] for number in self._numbers]
        self._images = np.full((rows, GRID_COLUMNS, *shape), 255, np.uint8)  # white where there are fewer
        self._counts = [0] * rows

    def add(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        """Images [n, H, W, C] and the class asked of each, [n]."""
        for row, number in enumerate(self._numbers):
            more = images[labels == number][: GRID_COLUMNS - self._counts[row]]
            self._images[row, self._counts[row] : self._counts[row] + len(more)] = more
            self._counts[row] += len(more)

    def picture(self) -> Image.Image:
        """A row a class, with its name."""
        flat = self._images.reshape(-1, *self._images.shape[2:])
        return grid(flat, GRID_COLUMNS, width=WIDTH, names=self._names)


class _Closest(NamedTuple):
    """The generated images nearest to a training image so far, nearest first."""

    images: NDArray[np.uint8]
    distances: torch.Tensor
    positions: torch.Tensor
    """Of each image's neighbours in the training split, [n, neighbours], nearest first."""

    def with_more(self, images: NDArray[np.uint8], distances: torch.Tensor, positions: torch.Tensor) -> _Closest:
        """The nearest of these and of more images."""
        both = torch.cat([self.distances, distances])
        kept = both.argsort(stable=True)[:CLOSEST]
        return _Closest(
            np.concatenate([self.images, images])[kept.numpy()],
            both[kept],
            torch.cat([self.positions, positions])[kept],
        )


def _captions(columns: int) -> list[str]:
    """Of the columns of a sample and its neighbours."""
    return ["sample", "nearest", "2nd", "3rd", *(f"{place}th" for place in range(4, columns))][:columns]


def _spread(images: Features, count: int) -> Features:
    """Those of `count` images at even distances, so that data sorted by class keeps its classes."""
    return images[torch.linspace(0, len(images) - 1, count, dtype=torch.float64).round().long()]


def _both(a: Features, b: Features) -> Features:
    whole = a.room_for(len(a) + len(b))
    whole.put(0, a)
    whole.put(len(a), b)
    return whole


def _check_published(identity: dict[str, Any], protocol: str) -> None:
    """Refuse features that are not the papers'."""
    wanted = f"evaluation.protocol {protocol} measures in InceptionV3's features with torch-fidelity's {INCEPTION_FILE}"
    if identity["kind"] != "inception":
        raise UserError(f"{wanted}, but extractor/ holds a {identity['kind']} network: run `ddpm fit-extractor`")
    if identity["sha256"] != INCEPTION_SHA256:
        raise UserError(
            f"{wanted} (SHA-256 {INCEPTION_SHA256}), but extractor/ was made with a file of {identity['sha256']}"
        )
