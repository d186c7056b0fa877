"""An autoencoder, its stored latents, and a model of them: trained, drawn, exported and measured."""

from __future__ import annotations

import copy
import csv
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from of_latents import AUTOENCODER, OF_LATENTS, TINY, params
from PIL import Image
from pydantic import ValidationError
from torchmetrics.functional.image import structural_similarity_index_measure
from untrained import untrained

import ddpm
from ddpm.codecs.latent import Latent, StoredLatent
from ddpm.config.model import VariantConfig
from ddpm.data.latents import Latents
from ddpm.data.store import PreparedData
from ddpm.deploy.runtime import Sampler
from ddpm.diffusion.noise import ImageNoise
from ddpm.errors import UserError
from ddpm.evaluation.likelihood import gigaflops_per_image, split_bounds
from ddpm.evaluation.reconstruction import ssim
from ddpm.export.parity import inputs_of
from ddpm.files import sha256_of
from ddpm.layout import LATENTS, PREPARED
from ddpm.model.card import DataFacts
from ddpm.stages.dry_run import dry_run
from ddpm.stages.encode import encode
from ddpm.stages.evaluate import evaluate_variant
from ddpm.stages.export import export_variant
from ddpm.stages.train import train_variant
from ddpm.stages.train_autoencoder import train_autoencoder


@pytest.fixture
def template(latents_template: Path) -> Path:
    """Both models trained, and the second exported."""
    return latents_template


def test_an_autoencoder_is_measured(project: Path):
    assert evaluate_variant(params(), "squeeze") is None
    metrics = json.loads(Path("reports/squeeze/metrics.json").read_text())
    data, model = PreparedData.open(PREPARED), ddpm.load("models/squeeze")
    split = data.split("validation")
    images = split.rows(np.arange(len(split)))
    x = model.codec.encode(torch.from_numpy(images))
    again = model.codec.decode(model.network(x).numpy())
    errors = again.astype(float) - images
    psnr = 10 * np.log10(255**2 / (errors**2).mean((1, 2, 3)))
    assert metrics["psnr"] == pytest.approx(psnr.mean(), rel=1e-4)
    assert metrics["mean_absolute_error"] == pytest.approx(np.abs(errors).mean(), rel=1e-4)
    assert metrics["rfid"] > 0
    assert metrics["validation_sha256"] == split.sha256
    mean, log_variance = model.network.encode(x)
    rows = list(csv.DictReader(Path("reports/squeeze/latents.csv").read_text().splitlines()))
    variances = mean.var((0, 2, 3), unbiased=False) + log_variance.exp().mean((0, 2, 3))
    assert [float(row["std"]) for row in rows] == pytest.approx(variances.sqrt().tolist(), rel=1e-3)
    assert metrics["dead_channels"] == np.mean([float(row["told"]) < 0.01 for row in rows])
    assert Image.open("reports/squeeze/reconstruction.png").width >= 600


def test_ssim_is_that_of_torchmetrics():
    random = np.random.default_rng(0)
    one = random.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    other = np.clip(one + random.integers(-60, 61, one.shape), 0, 255).astype(np.uint8)
    x, y = (torch.from_numpy(each).permute(0, 3, 1, 2).double() for each in (one, other))
    _, everywhere = structural_similarity_index_measure(x, y, data_range=255.0, return_full_image=True)
    within = everywhere[..., 5:-5, 5:-5]  # the window does not reach beyond the image
    assert ssim(one, other) == pytest.approx(within.mean((1, 2, 3)).numpy(), rel=1e-6)
    assert ssim(one[:, :4, :4], one[:, :4, :4]) == pytest.approx(1)  # smaller than the window


def test_latents_are_stored_once_and_have_unit_variance(here: Path):
    data = PreparedData.open(PREPARED)
    latents = Latents.open(LATENTS / "squeeze", data, sha256_of(Path("models/squeeze/model.safetensors")))
    split, model = latents.split("train"), ddpm.load("models/squeeze")
    rows = np.array([0, 5, 17])
    moments = torch.from_numpy(split.rows(rows))
    x = model.codec.encode(torch.from_numpy(data.split("train").rows(rows)))
    torch.testing.assert_close(moments, torch.cat(model.network.encode(x), dim=1))
    assert split.labels.tolist() == data.split("train").labels.tolist()
    codec = StoredLatent(model.codec, (2, 4, 4), latents.manifest.scale)
    everything = torch.from_numpy(split.rows(np.arange(len(split))))
    torch.manual_seed(0)
    z = codec.sample(codec.encode(everything), torch.randn_like)
    assert z.std().item() == pytest.approx(1, abs=0.01)
    other = codec.sample(codec.encode(everything), torch.randn_like)
    assert not torch.equal(z, other)


def test_a_model_of_latents_needs_nothing_but_its_directory(here: Path, tmp_path: Path):
    shutil.copytree("models/small", tmp_path / "moved")
    model, autoencoder = ddpm.load(tmp_path / "moved"), ddpm.load("models/squeeze")
    assert isinstance(model.codec, Latent)
    facts = model.card.data.latent
    assert (facts.variant, facts.sha256) == ("squeeze", sha256_of(Path("models/squeeze/model.safetensors")))
    assert facts.fingerprint == autoencoder.card.training.fingerprint
    images = model.sample(4, seed=1, label=[1, 2])
    assert images.shape == (4, 8, 8, 1)
    assert np.array_equal(images, model.sample(4, seed=1, label=[1, 2], batch_size=1))
    # What it draws are the autoencoder's pictures of latents without bounds.
    plan = model.plan()
    assert (plan.column("clip") > 1e6).all()
    noise = model.noise(4, 1)
    x0 = model.run(plan, noise(), noise, model.given(4, seed=1, label=[1, 2])).numpy()
    z = torch.from_numpy(x0 / np.float32(facts.scale))
    with torch.no_grad():
        expected = autoencoder.codec.decode(autoencoder.network.decode(z).numpy())
    assert np.array_equal(images, expected)


@pytest.mark.parametrize("asked", [{"clip": True}, {"dynamic_threshold": 0.99}])
def test_latents_are_not_clipped(here: Path, asked):
    with pytest.raises(ValueError, match="which latents are not in"):
        ddpm.load("models/small").plan(**asked)


def test_known_pixels_cannot_be_put_into_latents(here: Path):
    model = ddpm.load("models/small")
    with pytest.raises(ValueError, match="image: the model takes no such input"):
        model.sample(1, image=np.zeros((1, 8, 8, 1), np.uint8), mask=np.ones((1, 8, 8), bool))


def test_the_exported_one_draws_the_same_from_graph_and_loop(here: Path):
    parity = json.loads(Path("deploy/small/parity.json").read_text())
    assert parity["passed"]
    assert parity["files"]["decoder.onnx"]["max_abs_difference"] <= 1e-4
    model = ddpm.load("models/small").sampled_by(params().variant("small").sampling)
    ours = model.sample(4, seed=2, label=3)
    for in_graph in (False, True):
        theirs = Sampler("deploy/small", in_graph=in_graph).sample(4, seed=2, label=3)
        np.testing.assert_allclose(theirs.astype(int), ours, atol=1)
    # The one file, from noise to pictures.
    noise, plan = ImageNoise(2, 4, model.codec.network_shape), model.plan()
    session = onnxruntime.InferenceSession("deploy/small/sampler.onnx", providers=["CPUExecutionProvider"])
    inputs = inputs_of(plan, noise.draw(), noise.draw) | {"label": np.full(4, 3)}
    inputs.setdefault("z", np.zeros((len(plan), 0, *model.codec.network_shape), np.float32))
    images, x0 = session.run(["images", "x0"], inputs)
    assert x0.shape == (4, 2, 4, 4)
    np.testing.assert_allclose(images.astype(int), ours, atol=1)
    onnx.checker.check_model("deploy/small/sampler.onnx", full_check=True)


def test_the_exported_one_is_measured_and_the_likelihood_left_out(project: Path):
    measured = evaluate_variant(params(), "small")
    assert measured is not None
    assert not [name for name in measured.metrics if name.startswith("nll")]
    assert measured.metrics["fid"] > 0
    model, data = ddpm.load("models/small"), PreparedData.open(PREPARED)
    assert split_bounds(model, data, params().evaluation, seed=0) == {}
    without = copy.copy(model)
    object.__setattr__(without, "autoencoder", None)
    assert gigaflops_per_image(model) > gigaflops_per_image(without)


def test_the_same_training_ends_in_the_same_bits(project: Path):
    before = {name: sha256_of(Path(f"models/{name}/model.safetensors")) for name in ("squeeze", "small")}
    shutil.rmtree(".ddpm/training")
    train_autoencoder(params(), "squeeze")
    encode(params(), "squeeze")
    train_variant(params(), "small")
    assert {name: sha256_of(Path(f"models/{name}/model.safetensors")) for name in before} == before


def test_another_autoencoder_s_latents_are_refused_with_both_hashes(project: Path):
    first = sha256_of(Path("models/squeeze/model.safetensors"))
    other = copy.deepcopy(AUTOENCODER)
    other["training"]["steps"] = 2
    train_autoencoder(params(squeeze=other), "squeeze")
    second = sha256_of(Path("models/squeeze/model.safetensors"))
    with pytest.raises(UserError, match=f"{first[:12]}.*{second[:12]}.*run `ddpm encode squeeze`"):
        train_variant(params(), "small")
    encode(params(), "squeeze")
    dry_run(params(), "small")


def test_other_latents_of_the_same_autoencoder_begin_another_training(project: Path, capsys):
    """As where `ddpm encode` has changed: the old weights are not those of the new scale."""
    manifest = Path("latents/squeeze/manifest.json")
    written = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**written, "scale": 2 * written["scale"]}))
    before = sha256_of(Path("models/small/model.safetensors"))
    train_variant(params(), "small")
    assert "the set of latents has changed" in capsys.readouterr().out
    assert sha256_of(Path("models/small/model.safetensors")) != before


def test_latents_that_are_missing_or_damaged_are_named(project: Path):
    moments = Path("latents/squeeze/moments.npy")
    moments.write_bytes(moments.read_bytes()[:1000])
    with pytest.raises(UserError, match="latents/squeeze: damaged; run `ddpm encode squeeze`"):
        train_variant(params(), "small")
    shutil.rmtree("latents")
    with pytest.raises(UserError, match="no such file; run `ddpm encode squeeze`"):
        train_variant(params(), "small")


def test_an_autoencoder_of_other_images_is_refused(project: Path):
    card = json.loads(Path("models/squeeze/model.json").read_text())
    card["data"]["shape"] = [16, 16, 1]
    Path("models/squeeze/model.json").write_text(json.dumps(card))
    for run in (lambda: encode(params(), "squeeze"), lambda: train_variant(params(), "small")):
        with pytest.raises(
            UserError, match="autoencoder of images of 16×16×1, but the prepared data are images of 8×8×1"
        ):
            run()
    with pytest.raises(UserError, match="squeeze is an autoencoder of other images"):
        evaluate_variant(params(), "squeeze")


def test_an_autoencoder_of_other_channels_is_refused(project: Path):
    shutil.rmtree("models/squeeze")
    untrained("squeeze", Path("models"), DataFacts(name="colours", shape=(8, 8, 3), classes=None), **AUTOENCODER)
    for run in (lambda: encode(params(), "squeeze"), lambda: train_variant(params(), "small")):
        with pytest.raises(
            UserError, match="autoencoder of images of 8×8×3, but the prepared data are images of 8×8×1"
        ):
            run()


def test_what_is_no_autoencoder_is_refused(project: Path):
    shutil.copytree("models/small", "models/squeeze", dirs_exist_ok=True)
    with pytest.raises(UserError, match=r"squeeze is no autoencoder but of network\.kind unet"):
        encode(params(), "squeeze")


@pytest.mark.parametrize("damage", ["scale", "shape", "network"])
def test_a_card_whose_latents_cannot_be_is_refused(project: Path, damage):
    path = Path("models/small/model.json")
    card = json.loads(path.read_text())
    latent = card["data"]["latent"]
    if damage == "network":
        latent["network"]["blocks"] = 10**9
    else:
        latent[damage] = {"scale": -1.0, "shape": [2, 8, 8]}[damage]
    path.write_text(json.dumps(card))
    with pytest.raises(UserError, match=r"model\.json"):
        ddpm.load("models/small")


def refused(**changes) -> str:
    with pytest.raises(ValidationError) as error:
        VariantConfig.model_validate({**copy.deepcopy(OF_LATENTS), **changes})
    return str(error.value)


def test_what_does_not_go_with_latents_is_said():
    assert "mirrored" in refused(training={**TINY["training"], "horizontal_flip": True})
    assert "pixels of x" in refused(condition={"low": {"side": 4}})
    assert "side and latent" in refused(codec={"side": 4, **OF_LATENTS["codec"]})
    assert "go together" in refused(objective=AUTOENCODER["objective"])
    assert "go together" in refused(network=AUTOENCODER["network"])
    assert "takes no condition" in refused(**{**AUTOENCODER, "codec": {}})


def test_an_autoencoder_draws_nothing(here: Path):
    with pytest.raises(ValueError, match="an autoencoder, which draws nothing; models of its latents do"):
        ddpm.load("models/squeeze").sample(1)
    with pytest.raises(UserError, match="nothing to export"):
        export_variant(params(), "squeeze")
