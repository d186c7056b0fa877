"""A CLIP through its stages: trained, measured, and the images embedded."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from captioned import CLIP, write_pictures
from tiny import TINY_PARAMS
from torch import nn

from ddpm.cli.main import main
from ddpm.conditioning.guidance import CLIPGradient
from ddpm.config.cascade import CascadeConfig
from ddpm.config.params import Params
from ddpm.data.embeddings import Embeddings
from ddpm.data.store import PreparedData
from ddpm.errors import UserError
from ddpm.evaluation.accessory import open_space
from ddpm.evaluation.alignment import Alignment
from ddpm.evaluation.joint_retrieval import joint_retrieval
from ddpm.evaluation.measure import captioned_of
from ddpm.evaluation.scores import scores_of
from ddpm.files import read_json, sha256_of
from ddpm.joint_space import JointSpace
from ddpm.layout import EMBEDDINGS, PREPARED
from ddpm.model import load
from ddpm.stages.dry_run import dry_run
from ddpm.stages.embed import embed
from ddpm.stages.evaluate import evaluate_variant
from ddpm.stages.export import export_variant
from ddpm.stages.fetch import fetch
from ddpm.stages.guide import record_judge
from ddpm.stages.prepare import prepare
from ddpm.stages.train import train_variant

TINY = TINY_PARAMS["models"]["tiny"]


def params(**clip) -> Params:
    raw = copy.deepcopy(TINY_PARAMS)
    raw["data"] = {"source": "folder", "path": "pictures", "validation_fraction": 0.4}
    raw["encoders"] = ["clip"]
    raw["models"]["clip"] = copy.deepcopy(CLIP) | clip
    return Params.model_validate(raw)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen pictures with one or two captions, and a CLIP of them."""
    directory = tmp_path_factory.mktemp("clip") / "project"
    directory.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        write_pictures(Path("pictures"))
        fetch(params())
        prepare(params())
        train_variant(params(), "clip")
    return directory


def opened() -> JointSpace:
    return open_space("clip", PreparedData.open(PREPARED).codec, "here", Path(), torch.device("cpu"))[1]


def test_images_and_texts_are_embedded_in_one_space(project: Path):
    space, images = opened(), PreparedData.open(PREPARED).split("train").rows(np.arange(3))
    vectors = space.images(images)
    assert vectors.shape == (3, space.dimension) == (3, 6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(space.images(images[:0]), np.zeros((0, 6), np.float32))
    texts = space.texts(["night", "a light square"])
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(space.texts(["night"]), texts[:1], rtol=1e-5)
    assert space.texts([]).shape == (0, 6)


def test_the_embeddings_are_of_the_prepared_images_in_their_order(project: Path):
    written, data = embed(params(), "clip"), PreparedData.open(PREPARED)
    sha256 = sha256_of(Path("models/clip/model.safetensors"))
    found = Embeddings.open(EMBEDDINGS / "clip", data, sha256)
    assert found.manifest == written
    assert (written.count, written.dimension, written.encoder_sha256) == (16, 6, sha256)
    space = opened()
    for name in ("train", "validation"):
        split, vectors = data.split(name), found.split(name)
        rows = np.arange(len(split))
        np.testing.assert_allclose(vectors.rows(rows), space.images(split.rows(rows)), rtol=1e-5)
        assert vectors.captions == split.captions


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: shutil.rmtree(path), r"no such file; run `ddpm embed clip`"),
        (lambda path: (path / "manifest.json").write_text("{"), r"damaged; run `ddpm embed clip`"),
        (lambda path: np.save(path / "vectors.npy", np.zeros((16, 5), np.float32)), r"damaged \(float32 \[16, 5\]\)"),
        (lambda path: change(path, encoder_sha256="0" * 64), r"is of the encoder with the weights 000000000000"),
        (lambda path: change(path, images_sha256="0" * 64), r"is of the prepared data with the SHA-256 000000000000"),
    ],
)
def test_embeddings_of_something_else_are_refused(project: Path, damage, words):
    embed(params(), "clip")
    damage(EMBEDDINGS / "clip")
    with pytest.raises(UserError, match=words):
        Embeddings.open(EMBEDDINGS / "clip", PreparedData.open(PREPARED), opened().sha256)


def change(path: Path, **keys: str) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | keys))


def test_it_is_measured_by_how_often_it_finds_what_belongs_together(project: Path):
    evaluate_variant(params(), "clip")
    metrics, data = read_json(Path("reports/clip/metrics.json")), PreparedData.open(PREPARED)
    for split, what in (("train", "caption"), ("validation", "image")):
        key = f"{split}_{what}_r_1"
        assert metrics[f"{key}_low"] <= metrics[key] <= metrics[f"{key}_high"]
        assert 0 < metrics[f"{key}_chance"] < 1
    assert metrics["validation_count"] == len(data.split("validation"))
    assert Path("reports/clip/nearest.png").is_file()
    assert "a CLIP, which draws nothing" in str(load("models/clip").card.config.draws_nothing)
    assert any("embedded" in line for line in dry_run(params(), "clip"))


@pytest.mark.parametrize("rows", [1, 500])
def test_retrieval_counts_each_caption_once_and_every_image_that_has_it(project: Path, monkeypatch, rows: int):
    """Of vectors by the brightness of an image and the caption's own words: dark and light are told apart."""
    space, split = opened(), PreparedData.open(PREPARED).split("train")
    light = space.column.read("a light square", 1)[0]

    def images(stored):
        side = np.sign(stored[:, 0, 0, 0].astype(np.float32) - 128)
        return np.stack([side, np.zeros_like(side)], 1)

    def tokens(ids):
        return np.stack([np.where((ids == light).all(1), 1.0, -1.0), np.zeros(len(ids))], 1).astype(np.float32)

    monkeypatch.setattr(type(space), "images", lambda self, stored: images(stored))
    monkeypatch.setattr(type(space), "tokens", lambda self, ids: tokens(ids))
    monkeypatch.setattr("ddpm.evaluation.joint_retrieval.ROWS", rows)
    found = joint_retrieval(space, split)
    captions = {text for own in split.captions for text in own}
    dark = sum("night" in own for own in split.captions)
    assert len(found.images_of_captions) == len(captions) == 3
    assert sorted(found.right_images.tolist()) == sorted([dark, dark, len(split) - dark])
    assert sorted(set(found.right_captions.tolist())) == [1, 2]
    figures = found.figures("train")
    assert figures["train_caption_r_1"] == figures["train_image_r_1"] == 1.0


def test_a_captions_turn_comes_by_step(project: Path, monkeypatch):
    """Of an image with two captions both are trained on, one a step."""
    from ddpm.training import contrast

    seen = []
    losses = contrast.Contrast.losses

    def watched(self, network, batch, t, noise):
        seen.extend(map(tuple, batch.given["prompt"].tolist()))
        return losses(self, network, batch, t, noise)

    monkeypatch.setattr(contrast.Contrast, "losses", watched)
    shutil.rmtree(".ddpm")
    train_variant(params(), "clip")
    assert len(set(seen)) == 3


@pytest.mark.parametrize("places", [{"variants": ["clip"]}, {"autoencoders": ["clip"]}, {"encoders": ["tiny"]}])
def test_it_is_written_under_encoders(places):
    raw = copy.deepcopy(TINY_PARAMS)
    raw["models"]["clip"] = copy.deepcopy(CLIP)
    with pytest.raises(ValueError, match=r"write it in `encoders`|expected autoencoder|expected clip"):
        Params.model_validate(raw | places)


def test_another_model_is_no_clip(project: Path):
    data = PreparedData.open(PREPARED)
    with pytest.raises(UserError, match="here: gone: expected a model directory"):
        open_space("gone", data.codec, "here", Path(), torch.device("cpu"))
    train_variant(params(), "tiny")
    with pytest.raises(UserError, match=r"here: tiny is no CLIP but of network\.kind unet"):
        open_space("tiny", data.codec, "here", Path(), torch.device("cpu"))


# --- as what measures other models


def judged(clip: str | None = "models/clip", **evaluation) -> Params:
    raw = params().model_dump(mode="json", exclude_unset=True)
    raw["models"]["tiny"]["condition"] = {"prompt": {**CLIP["condition"]["prompt"], "drop": 0.2}}
    raw["evaluation"] |= {"samples": 12, "held_out_samples": 4, "nll_samples": 0, "clip": clip, **evaluation}
    raw["models"]["tiny"]["training"]["steps"] = 4
    return Params.model_validate(raw)


@pytest.fixture
def drawing(project: Path) -> Path:
    """With an extractor, and a model that draws captions."""
    from ddpm.stages.extractor import fit_extractor

    fit_extractor(judged())
    train_variant(judged(), "tiny")
    return project


def test_models_with_captions_have_a_clip_score_and_an_r_precision(drawing: Path):
    evaluate_variant(judged(None), "tiny")
    plain = read_json(Path("reports/tiny/protocol.json"))
    assert not {"judge", "judge_candidates"} & plain.keys()
    assert "clip_score" not in read_json(Path("reports/tiny/metrics.json"))
    evaluate_variant(judged(), "tiny")
    metrics, protocol = read_json(Path("reports/tiny/metrics.json")), read_json(Path("reports/tiny/protocol.json"))
    sha256 = sha256_of(Path("models/clip/model.safetensors"))
    assert protocol["judge"] == f"clip {sha256[:12]}"
    assert {key for key in protocol if plain.get(key) != protocol[key]} == {"id", "judge", "judge_candidates"}
    for ending in ("", "_held_out"):
        for key in (f"clip_score{ending}", f"r_precision{ending}"):
            assert metrics[f"{key}_low"] <= metrics[key] <= metrics[f"{key}_high"]
        assert metrics[f"r_precision{ending}_chance"] == pytest.approx(1 / 3)
    assert 0 <= metrics["clip_score_real"] <= 100


def test_guesses_at_a_caption_that_the_data_do_not_have_have_one_more_to_choose_from(project: Path):
    data = PreparedData.open(PREPARED)
    for text, choices in (("night", 3), ("a night square", 4)):
        alignment = Alignment(opened(), [text], data, seed=0)
        alignment.add(data.split("train").rows(np.array([0])))
        assert alignment.figures()["r_precision_chance"] == pytest.approx(1 / choices)


def test_a_comparison_over_guidance_scales_has_them_too(drawing: Path):
    data, model = PreparedData.open(PREPARED), load("models/tiny")
    captioned = captioned_of(model, model.given(12, seed=0), data, judged().evaluation)
    for clip, expected in (("models/clip", {"clip_score", "r_precision"}), (None, set[str]())):
        scores = scores_of(judged(clip), data, Path(), torch.device("cpu"))
        found = scores.figures(model.batches(12, seed=0, batch_size=5), 12, captioned)
        assert {key for key in found if key in ("clip_score", "r_precision")} == expected


@pytest.mark.parametrize("clip", ["models/clip", None])
def test_the_record_of_a_cascade_has_the_hash_of_the_clip_that_measures_it(project: Path, clip: str | None):
    cascades = {"both": CascadeConfig(base="tiny", upsampler="tiny")}
    cascade = Path("models/both")
    (cascade / "base").mkdir(parents=True)
    for file in ("cascade.json", "base/model.json"):
        (cascade / file).write_text("{}")
    record_judge(judged(clip).model_copy(update={"cascades": cascades}), "both", "clip")
    weights = {name: sha256_of(Path("models/clip") / name) for name in ("model.json", "model.safetensors")}
    assert read_json(cascade / "judges" / "clip.json") == (weights if clip else {})


def test_the_cosine_is_of_each_samples_own_caption(project: Path):
    """Real images score best with their own captions, and as one computes by hand."""
    space, data = opened(), PreparedData.open(PREPARED)
    split = data.split("train")
    images, texts = split.rows(np.arange(len(split))), [own[0] for own in split.captions]
    alignment = Alignment(space, texts, data, seed=0)
    alignment.add(images[:3])
    alignment.add(images[3:])
    vectors = space.texts(texts)
    cosines = (space.images(images) * vectors).sum(1)
    figures = alignment.figures()
    assert figures["clip_score"] == pytest.approx(100 * np.maximum(cosines, 0).mean(), rel=1e-4)
    every = space.texts(["a light square", "a dark square", "night"])
    best = (space.images(images) @ every.T).max(1)
    assert figures["r_precision"] == pytest.approx((cosines >= best - 1e-6).mean())


def test_the_clip_that_measures_is_one_of_the_encoders():
    with pytest.raises(ValueError, match=r"evaluation\.clip is 'models/gone': expected models/NAME of a NAME in `enc"):
        judged("models/gone")
    with pytest.raises(ValueError, match=r"expected models/NAME of a NAME in `encoders`, found there: clip"):
        judged("elsewhere/clip")


def test_the_record_of_a_judge_changes_with_it_alone(project: Path):
    from ddpm.stages.guide import record_judge

    (project / "models/tiny").mkdir()
    (project / "models/tiny/model.json").write_text("{}")
    found = {}
    for name, given in (("judged", judged()), ("without", judged(None)), ("unconditional", params())):
        record_judge(given, "tiny", "clip")
        found[name] = read_json(Path("models/tiny/judges/clip.json"))
    assert found["judged"].keys() == {"model.json", "model.safetensors"}
    assert found["without"] == found["unconditional"] == {}
    with pytest.raises(UserError, match="tiny is not among the `encoders`"):
        record_judge(judged(), "tiny", "tiny")


# --- as a guide


NOISED = {"process": TINY["process"], "objective": {"loss": "contrastive", "noised": True}}


@pytest.fixture
def guided(project: Path) -> Path:
    """With an unconditional model, and a CLIP of noisy images."""
    train_variant(params(), "tiny")
    train_variant(params(**NOISED), "clip")
    return project


def test_a_clip_of_noisy_images_guides_a_model_that_knows_no_captions(guided: Path):
    model = load("models/tiny").guided_by("models/clip")
    assert [column.name for column in model.columns] == ["prompt"]
    assert model.unguided_scale == 0
    by_name = {
        scale: model.sampled_by({"steps": 5, "guide": "models/clip", "guidance_scale": scale}).sample(2, prompt="night")
        for scale in (0.0, 30.0)
    }
    np.testing.assert_array_equal(by_name[0.0], load("models/tiny").sampled_by({"steps": 5}).sample(2))
    assert (by_name[30.0] != by_name[0.0]).any()


def test_its_gradient_is_that_of_the_cosine_times_the_scale(guided: Path):
    model = load("models/tiny").guided_by("models/clip")
    given = model.given(2, prompt=["night", "a light square"])
    guide, clip = model.denoiser(given), model.guide.network
    assert isinstance(guide, CLIPGradient)
    x, t = torch.randn(2, *model.codec.network_shape, requires_grad=True), torch.tensor([3, 40])
    texts = clip.text(torch.from_numpy(given["prompt"]))
    cosines = nn.functional.cosine_similarity(clip.image(x, t), texts)
    (expected,) = torch.autograd.grad(clip.log_scale.exp() * cosines.sum(), x)
    assert expected.abs().max() > 0
    torch.testing.assert_close(guide.gradient(x, t), expected, rtol=1e-4, atol=1e-6)


def test_it_is_exported_with_the_model_that_it_guides(guided: Path, capsys: pytest.CaptureFixture[str]):
    raw = params(**NOISED).model_dump(mode="json", exclude_unset=True)
    raw["models"]["tiny"]["sampling"] = {"steps": 5, "guide": "models/clip", "guidance_scale": 10.0}
    raw |= {"encoders": [], "guides": ["clip"]}
    export_variant(Params.model_validate(raw), "tiny")
    assert "text_to_image.onnx is the trained model" in capsys.readouterr().out
    asked = ["--prompt", "night", "--guidance-scale", "20", "--n", "3", "--steps", "5"]
    assert main(["sample", "deploy/tiny", *asked, "--out", "a.npz"]) == 0
    assert main(["sample", "models/tiny", "--guide", "models/clip", *asked, "--out", "b.npz"]) == 0
    exported, trained = (np.load(f"{name}.npz")["images"].astype(int) for name in "ab")
    assert np.abs(exported - trained).max() <= 1


def test_a_clip_or_a_weaker_model_with_another_tokenizer_cannot_guide(guided: Path):
    raw = params().model_dump(mode="json", exclude_unset=True)
    for length, place in ((4, "models/weak"), (3, "models/last")):
        raw["models"]["tiny"]["condition"] = {"prompt": {**CLIP["condition"]["prompt"], "length": length, "drop": 0}}
        shutil.rmtree("models/tiny")
        train_variant(Params.model_validate(raw), "tiny")
        shutil.copytree("models/tiny", place)
    for guide in ("models/clip", "models/weak"):
        with pytest.raises(UserError, match=f"{guide} cannot guide tiny: it was trained with another tokenizer"):
            load("models/tiny").guided_by(guide)


def test_a_clip_that_cannot_guide_says_why(guided: Path):
    train_variant(params(), "clip")
    with pytest.raises(UserError, match=r"cannot guide tiny: it was trained with|it has seen no noisy images"):
        load("models/tiny").guided_by("models/clip")
    clean = {"process": TINY["process"]}
    train_variant(params(**clean), "clip")
    with pytest.raises(UserError, match=r"models/clip cannot guide tiny: it has seen no noisy images"):
        load("models/tiny").guided_by("models/clip")
