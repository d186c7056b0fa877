"""`ddpm compare`: the same noise, the recorded figures, one page."""

import base64
import io
import json
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny import TINY_PARAMS, run_cli, write_params

from ddpm.config.params import load_params
from ddpm.errors import UserError
from ddpm.evaluation.pictures import grid
from ddpm.figures.comparison import Recorded
from ddpm.figures.figure import FIGURES, Reading
from ddpm.figures.protocol import mark_of
from ddpm.figures.seeds import seeds_of
from ddpm.files import read_json, write_json
from ddpm.stages.compare import compare
from ddpm.stages.measure import evaluate_deployed
from ddpm.stages.sample import sample_to

OPTIONS = {"steps": [2, 5], "samples": 64}
SEED = seeds_of(TINY_PARAMS["seed"]).comparison


@pytest.fixture
def two(trained: Path) -> Path:
    """The tiny project with a second variant: the same weights, a plan of three steps, and a lower FID."""
    models = TINY_PARAMS["models"]
    second = {**models["tiny"], "sampling": {"steps": 3}}
    write_params(trained, {**TINY_PARAMS, "models": {**models, "second": second}})
    for folder in ("models", "reports"):
        shutil.copytree(trained / folder / "tiny", trained / folder / "second")
    edit(trained / "reports/second/metrics.json", fid=1.0, fid_low=0.5, fid_high=1.5)
    return trained


def edit(path: Path, **changes) -> None:
    write_json(path, {**read_json(path), **changes})


def page_of(directory: Path) -> ElementTree.Element:
    """The page, which is well-formed or raises here."""
    text = (directory / "report.html").read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>\n")
    return ElementTree.fromstring(text.removeprefix("<!doctype html>\n"))


def pictures(page: ElementTree.Element) -> dict[str, np.ndarray]:
    """The pixels of each picture under its alternative text."""
    sources = {image.attrib["alt"]: image.attrib["src"] for image in page.iter("img")}
    encoded = {alt: source.removeprefix("data:image/png;base64,") for alt, source in sources.items()}
    return {alt: np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for alt, data in encoded.items()}


def test_the_page_stands_by_itself_and_shows_all_figures_of_all_models(two):
    compare(load_params(), ["tiny", "second", "deploy/tiny"], Path("out"), **OPTIONS)
    text = (two / "out/report.html").read_text(encoding="utf-8")
    page = page_of(two / "out")
    for element in page.iter():
        assert element.tag not in ("script", "link", "iframe", "object")
        for name in ("src", "href", "srcset", "action"):
            assert element.attrib.get(name, "#").startswith(("#", "data:image/png;base64,")), element.attrib
        if element.attrib.get("role") == "img":
            assert "second" in element.attrib["aria-label"]
    assert not re.search(r"https?:|url\((?!#)|@import|file:|/tmp", text.replace("data:image", ""))
    assert str(two) not in text
    cells = ["".join(cell.itertext()).strip() for cell in page.iter("td")]
    for variant in ("tiny", "second"):
        metrics = read_json(two / f"reports/{variant}/metrics.json")
        for key in FIGURES.keys() & metrics.keys():
            assert str(Reading.of(metrics, key)) in cells
    labels = [element.attrib["aria-label"] for element in page.iter() if element.attrib.get("role") == "img"]
    assert [label.partition(":")[0] for label in labels] == [
        "FID (small CNN) over the number of steps",
        "Likelihood over the timesteps",
        "Precision and recall",
    ]


@pytest.mark.parametrize("model", ["models/tiny", "deploy/tiny"])
def test_the_pictures_are_what_ddpm_sample_draws(trained, model):
    compare(load_params(), [model], Path("out"), **OPTIONS)
    found = pictures(page_of(trained / "out"))
    name = "tiny"
    for title, overrides in (("by its own plan", {}), ("ddim, 2 steps", {"sampler": "ddim", "steps": 2, "eta": 0.0})):
        drawn = sample_to(model, trained / "samples.npz", count=16, seed=SEED, **overrides)
        expected = np.asarray(grid(drawn, 4)).astype(int)
        # A level more or less: the batches are not of one size, and so sums are rounded otherwise.
        assert np.abs(found[f"{title}: {name}"].astype(int) - expected).max() <= 1


def test_a_variant_is_drawn_by_its_plan_in_params_yaml(two):
    compare(load_params(), ["tiny", "second"], Path("out"), **OPTIONS)
    found = pictures(page_of(two / "out"))
    drawn = sample_to("models/second", two / "samples.npz", count=16, seed=SEED, steps=3)
    np.testing.assert_array_equal(found["by its own plan: second"], np.asarray(grid(drawn, 4)))
    # One network under one plan, and one noise.
    np.testing.assert_array_equal(found["ddim, 5 steps: tiny"], found["ddim, 5 steps: second"])


def test_the_curve_goes_through_the_figure_of_an_evaluation_of_the_same_seed(trained):
    """The tiny model's own plan is DDIM in five steps, and its evaluation took as many samples."""
    comparison = compare(load_params(), ["tiny"], Path("out"), **OPTIONS)
    recorded = read_json(trained / "reports/tiny/metrics.json")
    assert [steps for steps, _ in comparison.over_steps[0]] == [2, 5]
    measured = evaluate_deployed(load_params().model_copy(update={"seed": SEED}), trained / "deploy/tiny")
    assert comparison.over_steps[0][1][1] == pytest.approx(measured.metrics["fid"], rel=1e-4)
    assert comparison.over_steps[0][1][1] != pytest.approx(recorded["fid"], rel=1e-4)
    total = sum(bits for _, bits in comparison.models[0].recorded.likelihood)
    assert total == pytest.approx(recorded["nll_validation"], rel=1e-9)


@given(st.integers(0, 2**32 - 1))
def test_no_two_figures_are_of_the_same_seed(seed: int):
    seeds = seeds_of(seed)
    assert seeds.evaluation == seed
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= each < 2**32 for each in seeds)


def test_two_runs_write_the_same_bytes(trained):
    written = []
    for out in (Path("a"), Path("b")):
        compare(load_params(), ["tiny", "deploy/tiny"], out, **OPTIONS)
        written.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert written[0] == written[1]


def test_the_best_of_one_protocol_is_marked_and_comes_first_where_asked(two):
    comparison = compare(load_params(), ["tiny", "second"], Path("out"), rank=True, **OPTIONS)
    assert [model.name for model in comparison.models] == ["second", "tiny"]
    rows = {"".join(row[0].itertext()): row for row in page_of(two / "out").iter("tr")}
    assert [cell.attrib.get("class") for cell in rows["FID (small CNN) ↓"][1:3]] == ["best", None]
    assert not any(cell.attrib for cell in rows["KID (small CNN) ↓"][1:3]), "equal figures have no best"


def test_models_of_two_protocols_are_shown_and_never_ranked(two):
    edit(two / "reports/second/protocol.json", id="other", samples=5000)
    compare(load_params(), ["tiny", "second"], Path("out"), **OPTIONS)
    page = page_of(two / "out")
    assert not [cell for cell in page.iter("td") if cell.attrib.get("class") == "best"]
    assert "different protocols" in "".join(page.itertext())
    assert ["samples", "64", "5000"] in [[cell.text for cell in row] for row in page.iter("tr")]
    assert read_json(two / "out/comparison.json")["differences"]["samples"]["other"] == 5000
    with pytest.raises(UserError, match="tiny and second were measured under different protocols: samples: 64 → 5000"):
        compare(load_params(), ["tiny", "second"], Path("ranked"), rank=True, **OPTIONS)
    assert not Path("ranked").exists()


def test_a_model_that_was_never_evaluated_is_measured_and_not_ranked(two):
    shutil.rmtree(two / "reports/second")
    comparison = compare(load_params(), ["tiny", "second"], Path("out"), **OPTIONS)
    assert "second: never evaluated" in "".join(page_of(two / "out").itertext())
    terms = [model.recorded.likelihood for model in comparison.models]
    assert terms[0] == terms[1], "the same weights, computed here as an evaluation does"
    with pytest.raises(UserError, match="second cannot be ranked, since it was never evaluated"):
        compare(load_params(), ["tiny", "second"], Path("out"), rank=True, **OPTIONS)


def test_figures_of_another_training_are_not_shown_beside_the_pictures_of_this_one(two):
    card = read_json(two / "models/second/model.json")
    card["training"]["fingerprint"] = "0" * 64
    write_json(two / "models/second/model.json", card)
    comparison = compare(load_params(), ["tiny", "second"], Path("out"), **OPTIONS)
    assert [bool(model.recorded.metrics) for model in comparison.models] == [True, False]


@pytest.mark.parametrize(
    ("models", "options", "words"),
    [
        (
            ["tiny", "none"],
            {},
            "none: expected a model directory .* no such directory; `ddpm train none` makes models/none",
        ),
        (["tiny", "prepared"], {}, "prepared: expected a model directory .* it has neither file"),
        (["tiny", "tiny"], {}, "tiny is named twice"),
        (["tiny"], {"steps": [5, 51]}, "--steps: expected numbers from 1 to 50, the timesteps of tiny; found 51"),
        (["tiny"], {"steps": [0]}, "--steps: expected numbers from 1 to 50"),
        (["tiny"], {"sampler": "eulr"}, "--sampler: `sampler`: .* found 'eulr'"),
        (["tiny"], {"samples": 1}, "--samples must be at least 2, found 1"),
        (["tiny"], {"out": "models"}, "--out models: exists and is no comparison"),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_line_and_nothing_is_written(trained, models, options, words):
    before = {path for path in trained.rglob("*") if "features" not in path.parts}
    with pytest.raises(UserError, match=words) as caught:
        compare(load_params(), models, Path(options.pop("out", "out")), **{**OPTIONS, **options})
    assert "\n" not in str(caught.value)
    assert {path for path in trained.rglob("*") if "features" not in path.parts} == before


@pytest.mark.parametrize("table", ["t,train\n0,1.0\n", "t,validation\n0\n", "t,validation\n0,much\n"])
def test_a_damaged_table_of_the_likelihood_is_named(tmp_path, table):
    (tmp_path / "nll.csv").write_text(table)
    (tmp_path / "metrics.json").write_text(json.dumps({"model": mark_of("0123")}))
    (tmp_path / "protocol.json").write_text("{}")
    with pytest.raises(UserError, match=r"nll\.csv: damaged: expected numbers in the columns `t` and `validation`$"):
        Recorded.read(tmp_path, "0123")


def test_models_of_other_data_are_refused(trained):
    edit(trained / "deploy/tiny/sampler.json", shape=[4, 4, 1])
    with pytest.raises(UserError, match="deploy/tiny makes images of 4×4×1, but the prepared data are images of 8×8×1"):
        compare(load_params(), ["deploy/tiny"], Path("out"), **OPTIONS)


def test_the_command_line(trained):
    arguments = ("compare", "tiny", "deploy/tiny", "--steps", "2", "--samples", "8", "--out", "page")
    done = run_cli(trained, *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == [
        f"drawn with seed {SEED}, which evaluate and tune-guidance do not use",
        "tiny, deploy/tiny: page/report.html",
    ]
    record = json.loads((trained / "page/comparison.json").read_text())
    assert [model["name"] for model in record["models"]] == ["tiny", "deploy/tiny"]
    assert record["over_steps"]["conditions"]["samples"] == 8
    assert record["over_steps"]["conditions"]["seed"] == SEED
