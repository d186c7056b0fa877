"""From pictures with captions to a CLIP, a prior of its embeddings and a decoder, and what is drawn with them."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from captioned import CLIP, write_pictures
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file
from tiny import TINY_PARAMS

import ddpm
from ddpm.cli.main import main
from ddpm.codecs.embedding import Embedding
from ddpm.config.cascade import UnclipConfig
from ddpm.config.params import Params
from ddpm.data.store import PreparedData
from ddpm.deploy.integrity import Fingerprint, find_fault
from ddpm.drawer.cascade import Cascade, Link, link_seed
from ddpm.drawer.likeness import Likeness
from ddpm.errors import DdpmWarning, NotFiniteError, UserError
from ddpm.evaluation.accessory import open_space
from ddpm.evaluation.likelihood import gigaflops_per_image
from ddpm.files import read_json, sha256_of, write_json
from ddpm.joint_space import JointSpace
from ddpm.stages.compose import check_encoders
from ddpm.stages.dry_run import dry_run
from ddpm.stages.embed import embed
from ddpm.stages.evaluate import evaluate_variant
from ddpm.stages.export import export_variant
from ddpm.stages.fetch import fetch
from ddpm.stages.prepare import prepare
from ddpm.stages.train import train_variant

SHORT = {"steps": 4, "batch_size": 8, "learning_rate": 1e-3, "checkpoint_every": 4, "log_every": 2}
NUMBERS = CLIP["network"]["embedding"]
PRIOR = {
    "network": {"kind": "prior", "width": 16, "layers": 1, "heads": 2},
    "condition": {"prompt": {"of": "models/clip", "drop": 0.2}},
    "codec": {"embedding": {"encoder": "models/clip"}},
    "process": {"timesteps": 50, "schedule": "cosine", "prediction": "x0", "variance": "fixed_small"},
    "training": {**SHORT, "learning_rate": 1e-2},
    "sampling": {"sampler": "ancestral", "steps": 5, "guidance_scale": 2.0},
}


def raw_params() -> dict:
    raw = copy.deepcopy(TINY_PARAMS)
    raw["data"] = {"source": "folder", "path": "pictures"}
    tiny = raw["models"]["tiny"]
    tiny["training"] |= {"steps": 4}
    embedding = {"encoder": "models/clip", "drop": 0.1, "tokens": 2, "width": 12}
    decoder = copy.deepcopy(tiny) | {"condition": {"embedding": embedding}}
    raw["models"] |= {"clip": {**CLIP, "training": SHORT}, "prior": PRIOR, "decoder": decoder}
    return raw


def params() -> Params:
    return Params.model_validate(raw_params())


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All three trained for some steps."""
    root = tmp_path_factory.mktemp("unclip")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        write_pictures(Path("pictures"))
        Path("params.yaml").write_text(yaml.safe_dump(raw_params()))
        fetch(params())
        prepare(params())
        train_variant(params(), "clip")
        embed(params(), "clip")
        train_variant(params(), "prior")
        train_variant(params(), "decoder")
    return root


def space() -> JointSpace:
    return open_space("clip", PreparedData.open(Path("prepared")).codec, "clip", Path(), torch.device("cpu"))[1]


def unclip() -> Cascade:
    links = {
        "prior": Link(ddpm.load("models/prior")),
        "decoder": Link(ddpm.load("models/decoder"), {"embedding": "prior"}),
    }
    return Cascade(links, name="unclip")


def test_a_prior_and_a_decoder_of_two_clips_do_not_fit_together(project: Path):
    """The CLIP was trained anew in between, and embeds in another space."""
    path = Path("models/decoder/model.json")
    card = read_json(path)
    card["data"]["encoder"]["sha256"] = "0" * 64
    write_json(path, card)
    with pytest.raises(ValueError, match=r"the prior draws embeddings of the CLIP .* those of another, 000000000000…"):
        unclip()


def test_parts_of_a_clip_that_has_been_trained_again_are_not_composed(project: Path):
    config = UnclipConfig(encoder="clip", prior="prior", decoder="decoder", upsampler="larger")
    links = {name: ddpm.load(f"models/{name}") for name in ("prior", "decoder")}
    links["upsampler"] = SimpleNamespace(embedded_by=None)
    check_encoders(config, links, "unclips.dalle", Path())
    path = Path("models/clip/model.safetensors")
    path.write_bytes(path.read_bytes() + b" ")
    now = sha256_of(path)[:12]
    with pytest.raises(
        UserError, match=rf"unclips\.dalle: prior was trained with clip \w{{12}}, which is {now} now: run"
    ):
        check_encoders(config, links, "unclips.dalle", Path())


def test_with_one_noise_a_list_of_prompts_is_refused(project: Path):
    decoder = ddpm.load("models/decoder")
    pictures = np.zeros((2, *decoder.encoder.shape), np.uint8)
    with pytest.raises(ValueError, match=r"label: with mix, or from and to, all images have the same; found 2"):
        decoder.alike(Likeness(pictures, mix=3), 3, label=["a", "b"])


# --- the prior


def test_a_prior_draws_embeddings_of_a_prompt(project: Path):
    prior = ddpm.load("models/prior")
    assert isinstance(prior.codec, Embedding)
    found = prior.sample(5, seed=1, prompt="night")
    assert (found.shape, found.dtype) == ((5, NUMBERS), np.float32)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(prior.sample(5, seed=1, prompt="night", batch_size=2), found, atol=1e-5)
    x, t = torch.ones(1, NUMBERS), torch.tensor([20])
    told = [prior.denoiser(prior.given(1, prompt=text))(x, t) for text in ("night", "a light square", "")]
    assert not torch.equal(told[0], told[1])
    assert not torch.equal(told[0], told[2])


def test_the_text_encoder_is_the_clips_to_the_bit(project: Path):
    clip, prior = (load_file(f"models/{name}/model.safetensors") for name in ("clip", "prior"))
    names = {name for name in clip if name.startswith("text.encoder.")}
    assert names == {name for name in prior if name.startswith("text.encoder.")} != set()
    assert all(torch.equal(clip[name], prior[name]) for name in names)
    assert torch.equal(clip["text.projection.weight"], prior["text.embed.weight"])


def test_the_texts_embedding_is_the_clips(project: Path):
    prior = ddpm.load("models/prior")
    ids = torch.from_numpy(prior.given(2, prompt=["night", "a dark square"])["prompt"])
    found = torch.nn.functional.normalize(prior.network.text.embedding({"prompt": ids}), dim=1)
    np.testing.assert_allclose(found.numpy(), space().texts(["night", "a dark square"]), atol=1e-6)


def test_of_candidates_the_nearest_to_the_text_is_kept(project: Path):
    prior = ddpm.load("models/prior")
    texts = ["night", "a dark square", "a light square"]
    wanted = space().texts(texts)
    scores = []
    for candidates in (1, 2, 6):
        chosen = prior.sampled_by({**prior.card.config.sampling.model_dump(), "candidates": candidates})
        drawn = chosen.sample(3, seed=4, prompt=texts)
        np.testing.assert_allclose(chosen.sample(3, seed=4, prompt=texts, batch_size=2), drawn, atol=1e-5)
        assert chosen.evaluations(chosen.plan()) == candidates * prior.evaluations(prior.plan())
        assert gigaflops_per_image(chosen) == pytest.approx(candidates * gigaflops_per_image(prior))
        scores.append((drawn * wanted).sum(1))
    assert (scores[1] >= scores[0] - 1e-6).all()
    assert (scores[2] >= scores[1] - 1e-6).all()
    assert (scores[2] > scores[0] + 1e-4).any()


def test_a_candidate_that_is_not_finite_is_passed_over(project: Path, monkeypatch: pytest.MonkeyPatch):
    prior = ddpm.load("models/prior")
    prior = prior.sampled_by({**prior.card.config.sampling.model_dump(), "candidates": 2})
    parts = [prior.part(1, seed=seed, given=prior.given(1, prompt="night")) for seed in (0, 1)]
    runs = iter([[[1.0], [np.nan]], [[np.nan], [np.nan]]])
    monkeypatch.setattr(type(prior), "run", lambda *_: torch.tensor(next(runs)).expand(2, NUMBERS))
    first, second = prior.draw_parts(prior.plan(), parts)
    np.testing.assert_allclose(first, np.full((1, NUMBERS), NUMBERS**-0.5), atol=1e-6)
    assert isinstance(second, NotFiniteError)


def test_the_figures_of_a_prior(project: Path, capsys: pytest.CaptureFixture[str]):
    evaluate_variant(params(), "prior")
    found = read_json(Path("reports/prior/metrics.json"))
    for name in ("", "train_"):
        assert -1 <= found[f"{name}cosine_low"] <= found[f"{name}cosine"] <= found[f"{name}cosine_high"] <= 1
        assert 0 <= found[f"{name}r_1"] <= found[f"{name}r_5"] <= 1
        assert 0 < found[f"{name}r_1_chance"] < found[f"{name}r_5_chance"] < 1
    said = capsys.readouterr().out
    assert "cosine to the embedding of the true picture" in said
    assert "R@5" in said
    assert found["encoder"].startswith("clip ")


def test_a_prior_is_measured_under_the_plan_that_all_models_are(project: Path, capsys: pytest.CaptureFixture[str]):
    raw = raw_params()
    own, common = PRIOR["sampling"], {"sampler": "ddim", "steps": 3}
    found = []
    for sampling in (None, common):
        raw["evaluation"]["sampling"] = sampling
        evaluate_variant(Params.model_validate(raw), "prior")
        found.append(read_json(Path("reports/prior/metrics.json")))
    assert own.items() <= found[0]["sampling"].items()
    assert common.items() <= found[1]["sampling"].items()
    assert found[0]["cosine"] != found[1]["cosine"]
    raw["evaluation"]["sampling"] = {"steps": 51}
    with pytest.raises(UserError, match=r"models/prior cannot be sampled by evaluation\.sampling: .*found 51"):
        evaluate_variant(Params.model_validate(raw), "prior")


def test_a_text_encoder_of_a_clip_has_no_keys_of_its_own():
    raw = raw_params()
    raw["models"]["prior"] = copy.deepcopy(PRIOR)
    raw["models"]["prior"]["condition"]["prompt"]["width"] = 64
    with pytest.raises(ValidationError, match=r"models\.prior\.condition\.prompt\.width has no effect beside `of`"):
        Params.model_validate(raw)


def test_a_batch_of_a_clip_that_is_larger_than_its_data_is_warned_of(project: Path):
    raw = raw_params()
    raw["models"]["clip"] = copy.deepcopy(raw["models"]["clip"])
    raw["models"]["clip"]["training"]["batch_size"] = 64
    with pytest.warns(DdpmWarning, match=r"models\.clip\.training\.batch_size is 64, more than the \d+ training"):
        dry_run(Params.model_validate(raw), "clip")


def test_embeddings_of_another_clip_are_refused(project: Path):
    manifest = Path("embeddings/clip/manifest.json")
    manifest.write_text(json.dumps({**read_json(manifest), "encoder_sha256": "0" * 64}))
    with pytest.raises(UserError, match="run `ddpm embed clip`"):
        train_variant(params(), "prior")


def test_a_prior_without_its_clip(project: Path):
    shutil.rmtree("models/clip")
    with pytest.raises(UserError, match=r"models\.prior\.codec\.embedding\.encoder: models/clip: expected"):
        train_variant(params(), "prior")
    assert ddpm.load("models/prior").sample(1, prompt="night").shape == (1, NUMBERS)


def test_a_retrained_clip_is_another_training(project: Path):
    """The hash of the frozen weights is a part of the fingerprint."""
    before = read_json(Path("models/prior/model.json"))
    raw = raw_params()
    raw["models"]["clip"]["training"] = {**SHORT, "steps": 5}
    again = Params.model_validate(raw)
    train_variant(again, "clip")
    embed(again, "clip")
    train_variant(again, "prior")
    after = read_json(Path("models/prior/model.json"))
    assert before["training"]["fingerprint"] != after["training"]["fingerprint"]
    assert after["data"]["encoder"]["sha256"] == sha256_of(Path("models/clip/model.safetensors"))


# --- the decoder


def test_a_decoder_has_all_that_it_needs(project: Path):
    shutil.copytree("models/decoder", "elsewhere")
    expected = space().images(pictures())
    shutil.rmtree("models")
    decoder = ddpm.load("elsewhere")
    np.testing.assert_allclose(decoder.encoder.images(pictures()), expected, atol=1e-6)
    assert decoder.encoder.shape == (8, 8, 1)
    assert decoder.alike(Likeness(pictures()), 3).shape == (3, 8, 8, 1)


def pictures(count: int = 1) -> np.ndarray:
    return PreparedData.open(Path("prepared")).split("train").rows(np.arange(count))


def test_variations_are_of_the_pictures_embedding(project: Path):
    decoder = ddpm.load("models/decoder")
    found = decoder.alike(Likeness(pictures(2)), 4, seed=3)
    expected = decoder.sample(4, seed=3, embedding=decoder.encoder.images(pictures(2)))
    np.testing.assert_array_equal(found, expected)


def test_an_interpolation_is_of_one_noise(project: Path):
    decoder = ddpm.load("models/decoder")
    first, last = decoder.encoder.images(pictures(2))
    found = decoder.alike(Likeness(pictures(2), mix=3), 0, seed=5)
    for index, embedding in ((0, first), (2, last)):
        np.testing.assert_array_equal(found[index], decoder.sample(1, seed=5, embedding=embedding)[0])
    np.testing.assert_array_equal(decoder.alike(Likeness(pictures(2), mix=3), 0, seed=5, batch_size=2), found)


def test_without_an_embedding_a_decoder_draws_nothing(project: Path):
    with pytest.raises(ValueError, match="draws of the embedding of a picture"):
        ddpm.load("models/decoder").sample(1)


# --- both


def test_a_cascade_draws_what_a_text_says(project: Path):
    cascade = unclip()
    assert cascade.sample(3, prompt="night").shape == (3, 8, 8, 1)
    assert [column.name for column in cascade.columns] == ["prompt"]


def test_pictures_alike_need_no_prior(project: Path):
    cascade, decoder = unclip(), ddpm.load("models/decoder")
    found = cascade.alike(Likeness(pictures()), 2)
    np.testing.assert_array_equal(found, decoder.alike(Likeness(pictures()), 2, seed=link_seed(0, 1)))
    changed = Likeness(pictures(), change=("night", "a light square"))
    assert cascade.alike(changed, 0).shape == (1, 8, 8, 1)


# --- the command


def test_sample_like(project: Path, capsys: pytest.CaptureFixture[str]):
    Image.fromarray(np.full((40, 30, 3), 200, np.uint8)).save("large.png")
    command = ["sample", "decoder", "--like", "large.png", "--seed", "2"]
    assert main([*command, "--n", "3", "--out", "a.npz"]) == 0
    assert np.load("a.npz")["images"].shape == (3, 8, 8, 1)
    assert main([*command, "--like", "pictures/00.png", "--mix", "5", "--out", "b.npz"]) == 0
    assert np.load("b.npz")["images"].shape == (5, 8, 8, 1)
    assert main([*command, "--from", "night", "--to", "a light square", "--out", "c.png"]) == 0
    assert Image.open("c.png").text["Like"] == "large.png"


def test_sample_like_with_a_known_part(project: Path):
    """The other pictures count beside --like."""
    Image.fromarray(np.full((8, 8), 37, np.uint8)).save("known.png")
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save("mask.png")
    known = ["--image", "known.png", "--mask", "mask.png", "--inpainting", "replace"]
    for like in (["--n", "2"], ["--from", "night", "--to", "a light square", "--mix", "3"]):
        command = ["sample", "decoder", "--like", "pictures/00.png", *like, *known, "--out", "known.npz"]
        assert main(command) == 0
        assert (np.load("known.npz")["images"] == 37).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["decoder", "--mix", "3"], "--mix needs --like"),
        (["decoder", "--like", "pictures/00.png", "--mix", "3"], "expected two in `like`, found 1"),
        (["decoder", "--like", "pictures/00.png", "--from", "night"], "--from and --to go together"),
        (["decoder", "--like", "pictures/00.png", "--strength", "0.3"], "--strength is how far --from and --to"),
        (["decoder", "--like", "pictures/00.txt"], "--like pictures/00.txt: "),
        (["decoder", "--like", "none.png"], "none.png: No such file"),
        (["decoder", "--like", "none.png", "--mix", "3"], "--mix goes from one picture to another; expected two in"),
        (
            ["decoder", "--like", "none.png", "--from", "a", "--to", "b", "--strength", "2"],
            "--strength must be above 0",
        ),
        (["prior", "--prompt", "night", "--out", "out.png"], "--out out.png: prior draws embeddings, which no"),
        (["decoder", "--prompt", "night"], "prompt: the model takes no such input; it takes: image, mask, like"),
        (["prior", "--like", "pictures/00.png"], "prior draws no pictures of CLIP embeddings"),
        (["decoder"], "draws of the embedding of a picture"),
    ],
)
def test_what_sample_refuses(project: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str):
    out = [] if "--out" in options else ["--out", "out.npz"]
    assert main(["sample", *options, *out]) == 2
    assert said in capsys.readouterr().err
    assert not Path("out.npz").exists()


# --- exported


@pytest.fixture(scope="module")
def exported(template: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(template)
        export_variant(params(), "prior")
        export_variant(params(), "decoder")
    return template / "deploy"


def test_an_exported_prior_draws_the_same(exported: Path, template: Path):
    trained, sampler = ddpm.load(template / "models" / "prior"), ddpm.load(exported / "prior")
    choices = {**PRIOR["sampling"], "candidates": 3}
    for each in (trained, trained.sampled_by(choices)):
        other = sampler.sampled_by(each.choices[1])
        found, expected = (drawer.sample(4, seed=2, prompt=["night", ""]) for drawer in (other, each))
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_an_exported_decoder_draws_pictures_alike(exported: Path, template: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(template)
    trained, sampler = ddpm.load("models/decoder"), ddpm.load("deploy/decoder")
    for likeness in (Likeness(pictures(2)), Likeness(pictures(1), change=("night", "a light square"))):
        found, expected = (each.alike(likeness, 3, seed=1).astype(int) for each in (sampler, trained))
        assert np.abs(found - expected).max() <= 2
    assert find_fault(exported / "decoder", Fingerprint.of(exported / "decoder")) is None
    assert set(read_json(exported / "decoder" / "parity.json")["files"]) >= {"image_encoder.onnx", "text_encoder.onnx"}


def test_a_missing_encoder_is_named(exported: Path, template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(template)
    shutil.copytree(exported / "decoder", tmp_path / "decoder")
    (tmp_path / "decoder" / "image_encoder.onnx").unlink()
    with pytest.raises(UserError, match=r"image_encoder\.onnx is missing: it embeds the pictures"):
        ddpm.load(tmp_path / "decoder").alike(Likeness(pictures()), 1)
