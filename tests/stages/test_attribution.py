"""The credit for the training images, from the manifest into everything that is made of them."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import pytest
from finished import VARIANT
from PIL import Image

from ddpm import tracking
from ddpm.config.model import ModelConfig
from ddpm.config.params import load_params
from ddpm.data.store import PreparedData
from ddpm.deploy.runtime import Sampler
from ddpm.errors import UserError
from ddpm.files import read_json, write_json
from ddpm.layout import COMPARISON_PICTURE
from ddpm.model import load
from ddpm.serve.answers import encode
from ddpm.serve.models import ServedModel
from ddpm.serve.schemas import ImageRequest
from ddpm.stages.compare import compare
from ddpm.stages.evaluate import evaluate_variant
from ddpm.stages.sample import sample_to
from ddpm.stages.train import data_facts

CREDIT = "Training images: by Ada – CC BY-SA 4.0"


def put(path: Path, key: str | None = None) -> None:
    """Write the credit into a JSON file, or into one of its objects."""
    content = read_json(path)
    (content if key is None else content[key])["attribution"] = CREDIT
    write_json(path, content)


@pytest.fixture
def credited(trained: Path) -> Path:
    """The tiny project as if its images had asked for credit."""
    put(trained / "prepared/manifest.json")
    put(trained / "models/tiny/model.json", "data")
    put(trained / "deploy/tiny/sampler.json", "data")
    return trained


def said_in(content: Path | bytes) -> str | None:
    with Image.open(content if isinstance(content, Path) else io.BytesIO(content)) as image:
        return image.text.get("Attribution")  # type: ignore[attr-defined]


def test_a_model_learns_it_from_the_manifest(credited: Path):
    assert data_facts(PreparedData.open(Path("prepared")), ModelConfig()).attribution == CREDIT
    assert load("models/tiny").attribution == CREDIT
    assert Sampler("deploy/tiny").attribution == CREDIT


@pytest.mark.parametrize("model", ["models/tiny", "deploy/tiny"])
def test_it_is_in_every_picture_that_is_sampled(credited: Path, model: str):
    sample_to(model, Path("grid.png"), count=2)
    sample_to(model, Path("pictures"), count=2)
    files = [Path("grid.png"), *Path("pictures").iterdir()]
    assert [said_in(file) for file in files] == [CREDIT] * 3


def test_it_is_in_the_report_and_in_its_pictures(credited: Path):
    evaluate_variant(load_params(), "tiny")
    assert read_json(Path("reports/tiny/metrics.json"))["attribution"] == CREDIT
    pictures = list(Path("reports/tiny").glob("*.png"))
    assert {said_in(file) for file in pictures} == {CREDIT}
    assert len(pictures) >= 4
    with Image.open("reports/tiny/denoising.gif") as film:
        assert b"Attribution: Training images: by Ada ? CC BY-SA 4.0" in film.info["comment"]  # ASCII alone


def test_it_is_on_the_page_of_a_comparison(credited: Path):
    compare(load_params(), ["tiny", "deploy/tiny"], Path("out"), steps=[2], samples=64)
    page = Path("out/report.html").read_text(encoding="utf-8")
    assert page.count(f"<p>{CREDIT}</p>") == 1  # of both models
    source = page.partition('src="data:image/png;base64,')[2].partition('"')[0]
    assert said_in(base64.b64decode(source)) == said_in(Path("out") / COMPARISON_PICTURE) == CREDIT
    assert read_json(Path("out/comparison.json"))["attributions"] == [CREDIT]


def test_it_is_in_what_the_service_answers(credited: Path):
    served = ServedModel("tiny", Sampler("deploy/tiny"))
    for count in (1, 2):
        asked = ImageRequest(n=count)
        images = served.sampler.sample(count)
        assert said_in(encode(images, "png", served, served.choice(), asked, {})) == CREDIT
        answer = json.loads(encode(images, "json", served, served.choice(), asked, {}))
        assert [said_in(base64.b64decode(image)) for image in answer["data"]] == [CREDIT] * count


def test_it_is_with_the_registered_version(finished: Path):
    put(finished / "prepared/manifest.json")
    put(finished / f"models/{VARIANT}/model.json", "data")
    client = tracking.load_mlflow(finished).MlflowClient()
    run = tracking.start_run(VARIANT)
    assert client.get_run(run).data.tags["attribution"] == CREDIT  # while it trains
    made = tracking.register(VARIANT, run_id=run)
    version = client.get_model_version(made.model, str(made.version))
    assert version.tags["attribution"] == CREDIT
    assert CREDIT in version.description
    assert CREDIT in client.get_run(run).data.tags["mlflow.note.content"]


def test_without_it_nothing_says_so(trained: Path):
    sample_to("models/tiny", Path("grid.png"), count=2)
    assert said_in(Path("grid.png")) is None
    assert "attribution" not in read_json(Path("reports/tiny/metrics.json"))
    assert load("models/tiny").attribution is Sampler("deploy/tiny").attribution is None


@pytest.mark.parametrize("value", [7, ["x"], "two\nlines"])
def test_what_is_no_credit_is_refused(trained: Path, value: object):
    for file, opened in (("models/tiny/model.json", load), ("deploy/tiny/sampler.json", Sampler)):
        content = read_json(Path(file))
        write_json(Path(file), {**content, "data": {**content["data"], "attribution": value}})
        with pytest.raises(UserError, match=r"data\.attribution"):
            opened(Path(file).parent)
