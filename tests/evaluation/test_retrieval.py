"""The rank of the asked picture among all: right values, chance, captions that several pictures share."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ddpm.conditioning.tokenizers import Words
from ddpm.config.params import Params
from ddpm.data.store import SPLITS, Captions, PreparedData, Split
from ddpm.evaluation.extractor import load_extractor
from ddpm.evaluation.image_metrics import ImageMeasure
from ddpm.evaluation.measure import captioned_of
from ddpm.evaluation.retrieval import AskedPictures, Captioned, Retrieval, chance, evenly, ranks, squared_distances
from ddpm.figures.figure import FIGURES, Reading, rows

PICTURES = 200


class Real:
    """Random pictures of 4×4×3, as a split."""

    def __init__(self, count: int = PICTURES) -> None:
        self.images = np.random.RandomState(0).randint(0, 256, (count, 4, 4, 3)).astype(np.uint8)

    def batches(self, size: int):
        yield from np.array_split(self.images, len(self.images) // size + 1)


def features_of(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).flatten(1).float()[:, ::5]


def figures_of(samples: np.ndarray, asked: list[str], captions: list[tuple[str, ...]]) -> dict[str, float]:
    tokenizer = Words.fit([text for own in captions for text in own], {"length": 4})
    real = Real(len(captions))
    pictures = AskedPictures(tokenizer.encode(asked)[0], captions, tokenizer)
    retrieval = Retrieval(pictures, [real], features_of(real.images))
    for part in np.array_split(samples, 3):
        retrieval.add(part, features_of(part))
    return retrieval.figures("retrieval")


def test_a_perfect_sampler_finds_all_and_a_random_one_finds_as_many_as_chance():
    captions = [(f"picture {number}",) for number in range(PICTURES)]
    order = np.random.RandomState(1).permutation(PICTURES)
    asked = [captions[number][0] for number in order]
    perfect = figures_of(Real().images[order], asked, captions)
    assert [perfect[f"retrieval_{k}_{space}"] for k in (1, 5) for space in ("pixels", "features")] == [1] * 4
    assert perfect["retrieval_1_pixels_low"] == pytest.approx(0.981, abs=1e-3)
    assert (perfect["retrieval_1_chance"], perfect["retrieval_5_chance"]) == pytest.approx((1 / 200, 5 / 200))
    drawn = np.random.RandomState(2).randint(0, 256, (4000, 4, 4, 3)).astype(np.uint8)
    random = figures_of(drawn, asked * 20, captions)
    for space in ("pixels", "features"):
        assert random[f"retrieval_5_{space}_low"] < 5 / 200 < random[f"retrieval_5_{space}_high"]
        assert random[f"retrieval_1_{space}"] < 0.01


def test_any_picture_with_the_caption_is_a_hit_and_any_caption_of_a_picture_finds_it():
    """Pictures 0 and 1 are both "sun"; picture 1 is "star" as well."""
    captions = [("sun",), ("sun", "star"), *((f"picture {number}",) for number in range(2, 12))]
    images = Real(12).images
    found = figures_of(images[[0, 1, 1, 0]], ["sun", "sun", "star", "star"], captions)
    assert found["retrieval_1_pixels"] == 3 / 4
    assert found["retrieval_1_chance"] == pytest.approx((2 + 2 + 1 + 1) / (4 * 12))


def test_captions_that_a_model_cannot_tell_apart_are_the_same():
    """Only the first four words are read."""
    captions = [("a b c d e",), ("a b c d f",), ("g",)]
    assert figures_of(Real(3).images[[1, 0, 2]], ["A b c d", "a b c d f", "g"], captions)["retrieval_1_pixels"] == 1


def test_ranks_count_the_nearer_pictures():
    pictures = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    right = torch.tensor([[False, False, True, False], [True, False, False, True], [False, True, False, False]])
    for size in (1, 2, 3, 4):  # one part after the other, or all together
        found = ranks(torch.tensor([[0.1], [6.0], [1.0]]), lambda size=size: pictures.split(size), right)
        assert found.tolist() == [3, 1, 1]


def test_ranks_need_the_memory_of_a_part_of_the_pictures():
    """100 of 5,000 pictures at a time: the distances to all of them would be 20 MB."""
    pictures = torch.from_numpy(np.random.RandomState(0).random((5_000, 2)))
    right = torch.eye(500, 5_000, dtype=torch.bool)
    with torch.profiler.profile(profile_memory=True) as profile:
        found = ranks(pictures[:500], lambda: pictures.split(100), right)
    assert found.tolist() == [1] * 500
    assert max(event.cpu_memory_usage for event in profile.events()) < 2_000_000


def test_distances_of_levels_are_exact():
    a, b = (torch.from_numpy(np.random.RandomState(seed).randint(0, 256, (3, 3072))) for seed in (0, 1))
    whole = (a[:, None] - b).square().sum(-1)
    assert squared_distances(a.byte(), b.byte()).tolist() == whole.tolist()
    assert squared_distances(a.byte(), a.byte()).diagonal().tolist() == [0] * 3


@pytest.mark.parametrize(("right", "place"), [(1, 1), (1, 5), (3, 5), (7, 5), (10, 3)])
def test_chance_is_that_of_a_random_order(right: int, place: int):
    order = np.argsort(np.random.RandomState(3).random((20_000, 10)), axis=1)
    found = (order[:, :place] < right).any(1).mean()
    assert float(chance(torch.tensor([right]), 10, place)[0]) == pytest.approx(found, abs=0.01)


def test_held_out_captions_are_taken_evenly():
    assert evenly([("a", "b"), ("c",)], 6) == ["a", "a", "b", "b", "c", "c"]
    assert evenly([(str(number),) for number in range(10)], 5) == ["0", "2", "4", "6", "8"]
    assert evenly([], 5) == []


def with_captions(project: Path, combinations: tuple[int, ...] = ()) -> PreparedData:
    """The digits, each with its number as a caption."""
    data = PreparedData.open(project / "prepared")
    total = sum(len(data.split(name)) for name in SPLITS)
    captions = Captions(project / "none", total, "")
    captions.__dict__["all"] = [(f"digit {number}",) for number in range(total)]
    images = np.zeros((total, *data.manifest.shape), np.uint8)
    for name in SPLITS:
        images[data.split(name).index] = data.split(name).rows(np.arange(len(data.split(name))))
    splits = {name: Split(images, None, data.split(name).index, data.split(name).sha256, captions) for name in SPLITS}
    update = {"classes": None, "captions_sha256": "c" * 64, "combinations": combinations}
    return PreparedData(data.manifest.model_copy(update=update), splits)


def test_what_is_held_out_is_the_combinations_or_else_the_validation_split(project: Path):
    data = with_captions(project)
    index = data.split("validation").index
    assert data.held_out_captions == [(f"digit {row}",) for row in index]
    assert with_captions(project, tuple(index[[3, 7]].tolist())).held_out_captions == [
        (f"digit {index[3]}",),
        (f"digit {index[7]}",),
    ]
    assert PreparedData.open(project / "prepared").held_out_captions == []


def test_an_evaluation_has_the_figures_of_both_kinds_of_captions(project: Path):
    """Training images for their captions, and for captions held out training images, which are wrong."""
    data = with_captions(project)
    train = data.split("train")
    params = Params.model_validate(
        {"evaluation": {"splits": 2, "resamples": 10, "samples": 20, "held_out_samples": 9}, "models": {"ddpm": {}}}
    )
    tokenizer = Words.fit([text for own in train.captions for text in own], {"length": 4})
    asked = tokenizer.encode(own[0] for own in train.captions[:20])[0]
    captioned = Captioned(tokenizer, asked, evenly(data.held_out_captions, 9))
    extractor = load_extractor(project / "extractor", weights=None, device=torch.device("cpu"))
    measure = ImageMeasure(params, data, extractor, project / ".ddpm/features", captioned=captioned)
    images = train.rows(np.arange(20))
    for batch in np.array_split(images, 3):
        measure.add(batch)
    measure.add_held_out(images[:9])
    figures = measure.figures()
    assert figures["retrieval_1_pixels"] == figures["retrieval_5_features"] == 1
    assert figures["held_out_retrieval_1_pixels"] < 0.5
    assert figures["samples"] == 20
    shown = rows(figures, {"extractor": "classifier"})
    assert shown["R@5 (pixels)"].startswith("1 [0.8389, 1]; chance: 0.00")
    assert FIGURES["held_out_retrieval_5_features"].named({"extractor": "rotation"}) == (
        "R@5 (small CNN on rotations), held-out captions"
    )
    reading = Reading.of(figures, "retrieval_5_pixels")
    assert reading is not None
    assert reading.column.startswith("chance 0.00")


def test_a_model_without_a_prompt_has_no_such_figures(project: Path):
    params = Params.model_validate({"models": {"ddpm": {}}})
    assert captioned_of(SimpleNamespace(columns=()), {}, with_captions(project), params.evaluation) is None
