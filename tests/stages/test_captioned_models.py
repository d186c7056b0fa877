"""A folder with captions through the stages, to a model that is conditioned on them."""

from __future__ import annotations

import copy
import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from captioned import write_pictures
from clip_text import SIZES, directory_of, peer
from PIL import Image
from prompts_of_all_kinds import DRAWN, REFUSED
from pydantic import ValidationError
from safetensors.torch import load_file
from tiny import TINY_PARAMS
from untrained import export

import ddpm
from ddpm.cli.main import main
from ddpm.conditioning.network import CONDITIONERS
from ddpm.conditioning.text import Text
from ddpm.config.params import Params
from ddpm.data.store import PreparedData
from ddpm.deploy.integrity import Fingerprint, find_fault
from ddpm.deploy.runtime import Sampler
from ddpm.errors import DdpmWarning, UserError
from ddpm.evaluation.likelihood import likelihood_figures, split_bounds
from ddpm.evaluation.progress import unseen
from ddpm.files import combined_sha256, read_json, sha256_of, write_json
from ddpm.interop import clip
from ddpm.stages.dry_run import dry_run
from ddpm.stages.export import export_variant
from ddpm.stages.fetch import fetch
from ddpm.stages.prepare import prepare
from ddpm.stages.sample import sample_to
from ddpm.stages.train import train_variant
from ddpm.stages.tune_ema import averaged

SMALL = {"length": 4, "width": 16, "layers": 1, "heads": 2}


def params_of(**prompt) -> Params:
    raw = copy.deepcopy(TINY_PARAMS)
    raw["data"] = {"source": "folder", "path": "pictures"}
    raw["models"]["tiny"]["condition"] = {"prompt": SMALL | prompt}
    raw["models"]["tiny"]["training"] |= {"steps": 6}
    return Params.model_validate(raw)


@pytest.fixture
def captioned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sixteen pictures, of which the dark ones have two captions; prepared."""
    monkeypatch.chdir(tmp_path)
    write_pictures(Path("pictures"))
    fetch(params_of())
    prepare(params_of())
    return tmp_path


@pytest.mark.parametrize("prompt", [{}, {"tokenizer": "bpe", "vocabulary_size": 530}], ids=["words", "bpe"])
def test_from_captions_to_a_picture_of_a_prompt(captioned: Path, prompt: dict):
    params = params_of(**prompt)
    train_variant(params, "tiny")
    model = ddpm.load("models/tiny")
    (column,) = model.columns
    assert (column.name, column.shape) == ("prompt", (4,))
    assert set(column.captions) == {"a light square", "a dark square", "night"}
    assert (column.tokenizer.cut(["a light square"]) == 0).all()
    one = model.sample(2, seed=3, prompt="night")
    np.testing.assert_array_equal(one, ddpm.load("models/tiny").sample(2, seed=3, prompt=["night"]))
    x, t = torch.ones(1, 1, 8, 8), torch.tensor([20])
    told = [model.denoiser(model.given(1, prompt=text))(x, t) for text in ("night", "a light square", "")]
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(told, 2))
    np.testing.assert_array_equal(model.sample(5, seed=1, batch_size=2), model.sample(5, seed=1))  # drawn captions
    with pytest.raises(ValueError, match="prompt: a control character"):
        model.sample(1, prompt="night\0")
    with pytest.raises(ValueError, match="label: the model"):
        model.sample(1, label=3)
    sample_to("models/tiny", Path("night.png"), count=2, prompt=["night", "a, b"])
    assert Image.open("night.png").text["Prompt"] == "night, a, b"
    with pytest.warns(DdpmWarning, match=r"reads the first 4 tokens of 'night night .*; \d+ more are left out"):
        sample_to("models/tiny", Path("night.npz"), count=1, prompt="night " * 9)


def test_a_prompt_with_words_that_no_caption_had_is_drawn_with_a_warning(captioned: Path):
    train_variant(params_of(), "tiny")
    with pytest.warns(DdpmWarning, match="no training caption has these words of 'night glorp b': glorp, b$"):
        sample_to("models/tiny", Path("night.npz"), count=1, prompt="night glorp b")


def test_the_network_of_latent_diffusion_is_trained_and_exported(captioned: Path):
    raw = params_of(drop=0.2).model_dump(mode="json")
    network = raw["models"]["tiny"]["network"]
    network |= {"attention": "transformer", "transformer_depth": 2, "transformer_projection": "linear", "heads": 2}
    raw["models"]["tiny"]["sampling"]["guidance_scale"] = 3.0
    raw["models"]["tiny"]["training"] |= {"steps": 20, "learning_rate": 1e-2}
    params = Params.model_validate(raw)
    train_variant(params, "tiny")
    export_variant(params, "tiny")
    parity = read_json(Path("deploy/tiny/parity.json"))
    assert parity["passed"]
    assert parity["files"].keys() == {"denoiser.onnx", "sampler.onnx", "text_to_image.onnx"}
    assert parity["max_abs_difference"] <= 1e-4
    model, exported = ddpm.load("models/tiny"), Sampler("deploy/tiny")
    x, t = torch.ones(1, 1, 8, 8), np.array([20])
    told = [model.denoiser(model.given(1, prompt=text))(x, torch.from_numpy(t)) for text in ("night", "")]
    assert not torch.equal(*told)
    for text, expected in zip(("night", ""), told, strict=True):
        answered = exported.denoise(x.numpy(), t, exported.given(1, prompt=text))
        np.testing.assert_allclose(answered, expected.numpy(), atol=1e-5)


CLIP = {"encoder": "clip", **SIZES, "length": 4, "activation": "gelu", "weights": "clip", "pooled": False}


def test_a_frozen_text_encoder_stays_as_it_was_published(captioned: Path):
    directory_of(peer("gelu", vocabulary=7, length=6), Path("clip"), "gelu")  # 5 words, the padding and the unknown one
    raw = params_of(**CLIP, frozen=True).model_dump(mode="json")
    raw["models"]["tiny"]["training"]["ema_snapshots"] = 2
    train_variant(Params.model_validate(raw), "tiny")
    published, _ = clip.read(Path("clip"))
    trained = ddpm.load("models/tiny").network.text.encoder.state_dict()
    assert all(torch.equal(trained[name], tensor) for name, tensor in published.weights.items())
    (state,) = Path(".ddpm/training/tiny").glob("*/")
    newest = load_file(sorted(state.glob("step-*"))[-1] / "state.safetensors")
    assert "ema.text.encoder.tokens.weight" not in newest
    assert not any("text.encoder" in name for name in newest), "no moments, no averages, no weights"
    averages = averaged(ddpm.load("models/tiny"), Path("models/tiny"), 0.07).network.state_dict()
    assert all(torch.equal(averages[f"text.encoder.{name}"], tensor) for name, tensor in published.weights.items())
    decided = read_json(state / "decisive.json")["data"]
    assert decided["text encoder that it starts from"] == sha256_of(Path("clip/model.safetensors"))
    with pytest.raises(UserError, match=r"condition\.prompt\.layers is 3, but the encoder in clip has 2"):
        train_variant(params_of(**CLIP | {"layers": 3}), "tiny")
    with pytest.raises(ValidationError, match=r"condition\.prompt\.frozen is true, but the text encoder has random"):
        params_of(encoder="clip", frozen=True)


def test_published_weights_are_where_an_encoder_starts(captioned: Path):
    directory_of(peer("gelu", vocabulary=7, length=6), Path("clip"), "gelu")
    train_variant(params_of(**CLIP), "tiny")
    published, _ = clip.read(Path("clip"))
    trained = ddpm.load("models/tiny").network.text.encoder.state_dict()
    moved = [(trained[name] - tensor).abs().max().item() for name, tensor in published.weights.items()]
    assert 0 < max(moved) < 0.05
    directory_of(peer("gelu", vocabulary=8, length=6), Path("clip"), "gelu")
    with pytest.raises(UserError, match=r"the tokenizer has 7 ids, but the encoder in clip 8: give its `vocabulary`"):
        train_variant(params_of(**CLIP), "tiny")


def test_weights_too_large_for_an_onnx_file_are_beside_it(captioned: Path, monkeypatch: pytest.MonkeyPatch):
    """With a lower threshold, through the stage: written, compared, hashed, and missed where they are not there."""
    params = params_of()
    train_variant(params, "tiny")
    monkeypatch.setattr("ddpm.export.files.MOST_WEIGHTS", 10_000)
    export_variant(params, "tiny")
    deploy, data = Path("deploy/tiny"), Path("deploy/tiny/denoiser.onnx.data")
    assert data.stat().st_size > 10_000
    parity = read_json(deploy / "parity.json")
    assert parity["passed"]
    assert parity["files"].keys() == {"denoiser.onnx", "sampler.onnx"}
    inside = deploy.with_name("inside")
    shutil.copytree(deploy, inside)
    for name in parity["files"]:
        onnx.save(onnx.load(deploy / name), inside / name)
    (inside / data.name).unlink()
    for in_graph in (False, True):
        drawn, expected = (Sampler(each, in_graph=in_graph).sample(2, prompt="night") for each in (deploy, inside))
        np.testing.assert_array_equal(drawn, expected)
    hashes = [parity["files"][name]["sha256"] for name in ("denoiser.onnx", "sampler.onnx")]
    assert hashes == [combined_sha256([deploy / name, data]) for name in ("denoiser.onnx", "sampler.onnx")]
    assert read_json(deploy / "sampler.json")["denoiser_sha256"] == hashes[0]
    recorded = Fingerprint.of(deploy)
    assert find_fault(deploy, recorded) is None
    spoilt = bytearray(data.read_bytes())
    spoilt[len(spoilt) // 2] ^= 255
    data.write_bytes(spoilt)
    assert "denoiser.onnx.data is not the file that was registered" in find_fault(deploy, recorded)
    data.unlink()
    assert "denoiser.onnx.data is missing" in find_fault(deploy, recorded)
    with pytest.raises(UserError, match=r"denoiser\.onnx does not load: .*denoiser\.onnx\.data"):
        Sampler(deploy)


def test_prompts_of_all_kinds_are_drawn_or_refused_in_a_line(captioned: Path, capsys):
    """By `ddpm sample`, and by the function that MLflow serves an exported model with."""
    import pandas as pd
    from mlflow.exceptions import MlflowException

    from ddpm.deploy.pyfunc import ImageSampler

    train_variant(params_of(), "tiny")
    export(ddpm.load("models/tiny"), Path("deploy/tiny"))
    served = ImageSampler()
    served.sampler = Sampler("deploy/tiny")
    for prompt in DRAWN.values():
        asked = ["sample", "models/tiny", "--n", "1", "--steps", "2", f"--prompt={prompt}", "--out", "one.png"]
        assert main(asked) == 0, capsys.readouterr().err
        drawn = served.predict(None, pd.DataFrame({"n": [1], "steps": [2], "prompt": [prompt]}))
        expected = ddpm.load("models/tiny").sample(1, prompt=prompt, steps=2)
        assert np.abs(drawn.astype(int) - expected).max() <= 1
    capsys.readouterr()
    for prompt, words in REFUSED.values():
        assert main(["sample", "models/tiny", "--n", "1", f"--prompt={prompt}", "--out", "none.png"]) == 2
        said = capsys.readouterr().err
        assert words in said
        assert said.count("\n") == 1
        with pytest.raises(MlflowException, match=re.escape(f"prompt: {words}")) as refused:
            served.predict(None, pd.DataFrame({"n": [1], "prompt": [prompt]}))
        assert refused.value.get_http_status_code() == 400
    assert not Path("none.png").exists()


def test_what_decides_the_training_names_captions_and_tokenizer(captioned: Path):
    train_variant(params_of(), "tiny")
    (decided,) = Path(".ddpm/training/tiny").glob("*/decisive.json")
    data = read_json(decided)["data"]
    assert data["captions"] == read_json(Path("prepared/manifest.json"))["captions_sha256"]
    assert len(data["tokenizer"]) == 64
    assert "labels" not in data
    raw = params_of().model_dump()
    raw["models"]["tiny"]["condition"] = {}
    train_variant(Params.model_validate(raw), "tiny")
    others = [read_json(path)["data"] for path in Path(".ddpm/training/tiny").glob("*/decisive.json")]
    assert {"training split"} in [set(each) for each in others]  # captions decide nothing of an unconditional model


def test_the_likelihood_is_that_given_the_captions(captioned: Path):
    params = params_of()
    train_variant(params, "tiny")
    model, data = ddpm.load("models/tiny"), PreparedData.open(Path("prepared"))
    bounds = split_bounds(model, data, params.evaluation, seed=0, show=unseen)
    assert np.isfinite(likelihood_figures(bounds)["nll_validation"])


def test_the_dry_run_has_the_columns_too(captioned: Path):
    lines = dry_run(params_of(), "tiny")
    assert any(line.startswith("  speed") for line in lines)


def test_data_without_captions_are_refused_early(captioned: Path):
    manifest = read_json(Path("prepared/manifest.json"))
    del manifest["captions_sha256"]
    write_json(Path("prepared/manifest.json"), manifest)
    with pytest.raises(UserError, match=r"models\.tiny\.condition\.prompt needs data with captions, and these have n"):
        train_variant(params_of(), "tiny")
    assert not Path("models").exists()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text["tokenizer"].pop("words"), r"model\.json: damaged: the tokenizer is damaged"),
        (lambda text: text.update(captions=[]), r"model\.json: damaged: condition\.prompt: expected captions"),
        (lambda text: text["tokenizer"].update(words="night"), r"model\.safetensors: another network: "),
        (lambda text: text.update(more=1), "unknown key `data.text.more`"),
    ],
)
def test_a_damaged_model_says_what_is_wrong(captioned: Path, damage, words):
    train_variant(params_of(), "tiny")
    card = json.loads(Path("models/tiny/model.json").read_text())
    damage(card["data"]["text"])
    write_json(Path("models/tiny/model.json"), card)
    with pytest.raises(UserError, match=words):
        ddpm.load("models/tiny")


def test_several_captions_are_all_trained_on(captioned: Path, monkeypatch: pytest.MonkeyPatch):
    """Each step chooses one by itself."""
    seen: set[tuple[int, ...]] = set()

    class Watching(Text):
        def forward(self, given):
            if torch.is_grad_enabled():
                seen.update(map(tuple, given["prompt"].tolist()))
            return super().forward(given)

    monkeypatch.setitem(CONDITIONERS, "prompt", Watching)
    train_variant(params_of(drop=0), "tiny")
    (column,) = ddpm.load("models/tiny").columns
    captions = ("a light square", "a dark square", "night")
    assert seen == {tuple(ids) for ids in column.tokenizer.encode(captions)[0].tolist()}
