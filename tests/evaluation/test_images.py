"""Images measured as they stream past: memorisation, the reference, and memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ddpm.config.evaluation import EvaluationConfig
from ddpm.config.params import Params
from ddpm.data.store import SPLITS, PreparedData
from ddpm.errors import UserError
from ddpm.evaluation.extractor import load_extractor
from ddpm.evaluation.image_metrics import CLOSEST, NEIGHBOURS, ImageMeasure
from ddpm.evaluation.pictures import CAPTION_HEIGHT
from ddpm.evaluation.requirements import check_enough, score_splits
from ddpm.figures.figure import FIGURES


def measure_of(project: Path, asked=None, **options) -> tuple[PreparedData, ImageMeasure]:
    params = Params.model_validate(
        {"evaluation": {"splits": 2, "resamples": 10, **options}, "models": {"ddpm": {}}, "seed": 3}
    )
    data = PreparedData.open(project / "prepared")
    extractor = load_extractor(project / "extractor", weights=None, device="cpu")
    return data, ImageMeasure(params, data, extractor, project / ".ddpm/features", asked=asked)


def test_copies_of_training_images_are_seen(project: Path):
    data, measure = measure_of(project)
    for batch in data.split("train").batches(100):
        measure.add(batch)
    figures = measure.figures()
    assert figures["nearest_distance"] == 0
    assert figures["nearest_distance_real"] > 0
    assert figures["near_copies"] > 0.95
    assert figures["fid"] == pytest.approx(0, abs=1e-6)
    assert (figures["precision"], figures["recall"]) == (1, 1)
    picture = np.array(measure.pictures()["neighbours.png"])
    step = 82  # an image of 8×8 enlarged to 80, and the gap
    for row in range(CLOSEST):
        top = CAPTION_HEIGHT + 2 + row * step
        strip = picture[top : top + 80]
        np.testing.assert_array_equal(strip[:, 2:82], strip[:, 2 + step : 82 + step])
    assert picture.shape[1] == 2 + (1 + NEIGHBOURS) * step


def test_new_images_are_no_copies_and_are_the_floor(project: Path):
    data, measure = measure_of(project)
    for batch in data.split("validation").batches(77):
        measure.add(batch)
    figures = measure.figures()
    assert figures["near_copies"] == pytest.approx(0.05, abs=0.01)
    for figure, real in (
        ("fid", "fid_floor"),
        ("fid", "fid_same_count"),
        ("kid", "kid_floor"),
        ("nearest_distance", "nearest_distance_real"),
        ("inception_score", "inception_score_real"),
    ):
        assert figures[figure] == pytest.approx(figures[real], rel=1e-3), figure
    assert figures["fid_low"] < figures["fid"] < figures["fid_high"]
    assert figures["inception_score_low"] < figures["inception_score"] < figures["inception_score_high"]


def test_real_images_under_their_own_labels_are_the_floor_of_the_class_figures(project: Path):
    validation = PreparedData.open(project / "prepared").split("validation")
    _, measure = measure_of(project, validation.labels)
    for batch in validation.batches(77):
        measure.add(batch)
    figures = measure.figures()
    assert figures["class_accuracy"] == figures["class_accuracy_real"] > 0.5
    assert figures["class_accuracy_low"] < figures["class_accuracy"] < figures["class_accuracy_high"]
    _, swapped = measure_of(project, (validation.labels + 1) % 10)
    for batch in validation.batches(77):
        swapped.add(batch)
    others = swapped.figures()
    assert others["class_accuracy"] < 0.2
    assert others["fid_within_classes"] > 2 * figures["fid_within_classes"]
    assert others["fid"] == figures["fid"]


def test_an_unconditional_model_has_no_figures_of_classes(project: Path):
    data, measure = measure_of(project)
    for batch in data.split("validation").batches(100):
        measure.add(batch)
    assert not [key for key in measure.figures() if "class" in key]


def test_a_classifier_of_other_classes_is_refused(project: Path):
    data = PreparedData.open(project / "prepared")
    manifest = data.manifest.model_copy(update={"classes": tuple("abc")})
    splits = {name: data.split(name) for name in SPLITS}
    extractor = load_extractor(project / "extractor", weights=None, device="cpu")
    params = Params.model_validate({"models": {"ddpm": {}}})
    other, asked = PreparedData(manifest, splits), np.zeros(2000, np.int64)
    with pytest.raises(UserError, match="fitted to 10 classes, but the prepared data have 3: run `ddpm fit-extractor`"):
        ImageMeasure(params, other, extractor, project / ".ddpm/features", asked=asked)


def test_a_conditional_models_grid_has_a_row_a_class(project: Path):
    """The first images that were asked for the class, and white where there are fewer."""
    asked = np.array([*[7] * 9, 2], np.int64)
    data, measure = measure_of(project, asked, samples=10)
    images = data.split("train").rows(np.arange(10))
    measure.add(images[:4])
    measure.add(images[4:])
    picture = np.array(measure.pictures()["samples.png"])
    step, room = 82, picture.shape[1] - (2 + 8 * 82)
    assert room > 5, "the names"
    cells = picture[2:, room + 2 :]
    for column in range(8):
        at = cells[7 * step : 7 * step + 80, column * step : column * step + 80]
        np.testing.assert_array_equal(at[::10, ::10], images[column, :, :, 0])
    np.testing.assert_array_equal(cells[2 * step : 2 * step + 80 : 10, 0:80:10], images[9, :, :, 0])
    assert (cells[2 * step : 2 * step + 80, step : step + 80] == 255).all()
    assert (picture[7 * step : 8 * step, :room] < 128).any(), "the class's name"


def test_all_images_can_be_the_reference(project: Path):
    data, measure = measure_of(project, reference="all")
    for name in ("train", "validation"):
        for batch in data.split(name).batches(100):
            measure.add(batch)
    figures = measure.figures()
    assert figures["fid"] == pytest.approx(0, abs=1e-6)
    assert figures["fid_floor"] > 1e-3  # still held-out images against the training images


def test_what_stands_beside_the_floor_has_its_count_and_its_reference(project: Path):
    """Held-out images as generated ones score the floor, also where they are among the reference."""
    data, measure = measure_of(project, reference="all")
    for batch in data.split("validation").batches(100):
        measure.add(batch)
    figures = measure.figures()
    for figure in FIGURES.values():
        if figure.real in figures and figure.key != "kid":  # whose reference has them
            assert figures[figure.key] == pytest.approx(figures[figure.real], rel=1e-6), figure.key
    assert figures["fid"] < 0.9 * figures["fid_floor"]


@pytest.mark.parametrize(
    ("options", "validation", "splits"),
    [
        ({}, 359, 10),
        ({"samples": 19, "splits": 10}, 359, 9),
        ({}, 16, 8),
        ({"splits": 200}, 359, 179),
        ({"samples": 4, "splits": 3}, 4, 2),
    ],
)
def test_the_inception_scores_parts_are_fitted_to_the_images(options, validation: int, splits: int):
    assert score_splits(EvaluationConfig.model_validate(options), validation) == splits


def test_too_few_images_are_refused_with_the_key_that_helps():
    options = EvaluationConfig()
    check_enough(options, 4, 4)
    with pytest.raises(UserError, match=r"validation images is 3, .* at least 4: .*raise data\.validation_fraction"):
        check_enough(options, 12, 3)
    with pytest.raises(UserError, match=r"training images is 3, .* at least 4: .*lower data\.validation_fraction"):
        check_enough(options, 3, 12)
    for counts in ((12, 3), (3, 12)):
        with pytest.raises(
            UserError, match=r"set data\.validation_fraction to a share such as 0\.2, instead of the publ"
        ):
            check_enough(options, *counts, published=True)


MEMORY = """
import re
from pathlib import Path
import numpy as np
from ddpm.config.evaluation import EvaluationConfig
from ddpm.config.params import Params
from ddpm.data.store import PreparedData, Split
from ddpm.evaluation.image_metrics import ImageMeasure
from test_features import MeanColour

SHAPE = (256, 256, 3)
params = Params.model_validate({"evaluation": {"samples": 760, "splits": 2, "resamples": 4}, "models": {"ddpm": {}}})
random = np.random.RandomState(0)
real = random.randint(0, 256, (40, *SHAPE)).astype(np.uint8)
splits = {name: Split(real, None, np.arange(40), name) for name in ("train", "validation")}
manifest = PreparedData.open(Path("prepared")).manifest.model_copy(update={"shape": SHAPE})
measure = ImageMeasure(params, PreparedData(manifest, splits), MeanColour(), Path("cache"))
for batches in (8, 30):
    for _ in range(batches):
        pixels = np.frombuffer(random.bytes(20 * 256 * 256 * 3), np.uint8)
        measure.add(pixels.reshape(20, *SHAPE))
    measure.figures()
    print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")
def test_memory_does_not_grow_with_the_images(project: Path):
    """600 more images, 118 MB of them, and less than half of that in memory."""
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", MEMORY],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    few, many = map(int, done.stdout.split())
    assert many - few < 59_000, (few, many)


def test_one_seed_one_report(trained: Path):
    """Whether the features of the real images were cached or not."""
    from ddpm.config.params import load_params
    from ddpm.stages.evaluate import evaluate_variant

    before = {path.name: path.read_bytes() for path in Path("reports/tiny").iterdir()}
    assert list(Path(".ddpm/features").iterdir())
    for path in Path(".ddpm/features").iterdir():
        path.unlink()
    evaluate_variant(load_params(), "tiny")
    assert {path.name: path.read_bytes() for path in Path("reports/tiny").iterdir()} == before
