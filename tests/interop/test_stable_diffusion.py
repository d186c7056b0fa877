"""Stable Diffusion's two formats, held against diffusers on small pipelines with random weights."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from clip_text import SIZES, directory_of, peer
from diffusers import AutoencoderKL, DDIMScheduler, DPMSolverMultistepScheduler, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from recorded import assert_equal, assert_same
from safetensors.torch import load_file, save_file
from stable_diffusion import LENGTH, MERGES, SCHEDULE, UNET, VAE, VOCABULARY, Pipeline, write_pipeline
from tiny import TINY_PARAMS
from torch import Tensor
from weights import moved

import ddpm
from ddpm.cli.main import main
from ddpm.conditioning.tokenizers import BytePairs
from ddpm.config.params import Params
from ddpm.deploy.runtime import Sampler
from ddpm.errors import UserError
from ddpm.interop import clip, ldm, openai
from ddpm.interop.diffusers import pipeline
from ddpm.interop.published import Flags, fused_names, swap_halves
from ddpm.model import Model
from ddpm.stages.export import export_variant
from ddpm.stages.interop import assemble, export_diffusers, import_model

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return write_pipeline(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="module")
def ours(theirs: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Model:
    out = tmp_path_factory.mktemp("models") / "sd"
    import_model(theirs.directory, out, Flags())
    return ddpm.load(out)


@torch.no_grad()
def test_every_part_is_theirs(theirs: Pipeline, ours: Model):
    texts = ("a b", "")
    given = ours.given(2, prompt=list(texts))
    tokens = ours.network.text({"prompt": torch.from_numpy(given["prompt"])}).tokens
    assert_equal(tokens, theirs.tokens(*texts), "text encoder")
    x, t = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([3, 977])
    assert_equal(ours.denoiser(given)(x, t), theirs.unet(x, t, theirs.tokens(*texts)).sample, "U-Net")
    images = theirs.vae.decode(x / 0.7).sample
    decoded = ours.codec.decode(x.numpy())
    assert decoded.shape == (2, 8, 8, 3)
    expected = np.clip(np.rint((images.numpy() + 1) * 127.5), 0, 255).transpose(0, 2, 3, 1)
    assert np.abs(decoded - expected).max() <= 1
    pictures = torch.rand(2, 3, 8, 8) * 2 - 1
    stored = ((pictures.permute(0, 2, 3, 1) + 1) * 127.5).round().to(torch.uint8)
    encoded = theirs.vae.encode(stored.permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mean * 0.7
    assert_equal(ours.codec.encode(stored), encoded, "autoencoder")


def test_the_card_says_what_the_directory_does(ours: Model):
    config = ours.card.config
    assert (config.process.schedule, config.process.timesteps, config.process.prediction) == (
        "scaled_linear",
        1000,
        "epsilon",
    )
    assert (config.sampling.sampler, config.sampling.spacing, config.sampling.guidance_scale) == (
        "ddim",
        "trailing",
        7.5,
    )
    assert config.network.attention == "transformer"
    assert config.condition.prompt.length == LENGTH - 2
    assert (ours.shape, ours.codec.network_shape) == ((8, 8, 3), (4, 4, 4))


@pytest.mark.parametrize(
    ("sampler", "name", "scheduler"),
    [
        ("ddim", "DDIM", DDIMScheduler(**SCHEDULE, clip_sample=False, timestep_spacing="trailing")),
        ("dpmpp_2m", "DPM-Solver++(2M)", DPMSolverMultistepScheduler(**SCHEDULE, timestep_spacing="trailing")),
    ],
)
def test_the_same_noise_is_the_same_picture(sampler, name, scheduler, theirs: Pipeline, ours: Model):
    """With guidance, as StableDiffusionPipeline runs its loop."""
    steps, scale, x = 4, 3.0, torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(5))
    plan = ours.plan(sampler=sampler, steps=steps, spacing="trailing", guidance_scale=scale)
    drawn = ours.run(plan, x, lambda: x, ours.given(1, prompt="c d"))
    scheduler.set_timesteps(steps)
    with torch.no_grad():
        context = theirs.tokens("", "c d")
        for t in scheduler.timesteps:
            weak, told = theirs.unet(torch.cat([x, x]), t, context).sample.chunk(2)
            x = scheduler.step(weak + scale * (told - weak), t, x).prev_sample
        images = theirs.vae.decode(x / 0.7).sample
    assert_equal(drawn, x, f"pipeline, {name}", bound=1e-4)
    expected = np.clip(np.rint((images.numpy() + 1) * 127.5), 0, 255).transpose(0, 2, 3, 1)
    assert np.abs(ours.codec.decode(drawn.numpy()) - expected).max() <= 1


def test_out_and_in_again_is_the_same_model(theirs: Pipeline, ours: Model, tmp_path: Path):
    assert export_diffusers(ours.directory, tmp_path / "out") == "StableDiffusionPipeline"
    for folder, kind in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
        kind.from_pretrained(tmp_path / "out" / folder)
        published, written = (
            load_file(each / folder / "diffusion_pytorch_model.safetensors")
            for each in (theirs.directory, tmp_path / "out")
        )
        assert_same(written, published, "pipeline, out and in again")
    published, written = (
        load_file(each / "text_encoder" / "model.safetensors") for each in (theirs.directory, tmp_path / "out")
    )
    assert all(torch.equal(written[name], published[name]) for name in published)
    again = assemble(pipeline.read(tmp_path / "out", Flags())[0], variant="sd", data_name="sd", fingerprint="0")
    assert again.card.data.text == ours.card.data.text
    state = ours.network.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.network.state_dict().items())


def test_it_is_exported_as_a_model_that_was_trained_here(ours: Model, tmp_path: Path):
    """By the lines of params.yaml that README shows."""
    block = re.search(r"(    models:\n      sd:\n.*?)\n\n", README.read_text("utf-8"), re.DOTALL)
    models = yaml.safe_load(block[1])["models"]
    models["sd"]["sampling"] |= {"steps": 3}
    (tmp_path / "models").mkdir()
    shutil.copytree(ours.directory, tmp_path / "models" / "sd")
    params = Params.model_validate({**TINY_PARAMS, "models": TINY_PARAMS["models"] | models})
    export_variant(params, "sd", root=tmp_path)
    deploy = tmp_path / "deploy" / "sd"
    assert json.loads((deploy / "parity.json").read_text())["passed"]
    expected = ours.sampled_by(params.variant("sd").sampling).sample(2, seed=4, prompt="a b")
    for in_graph in (False, True):
        drawn = Sampler(deploy, in_graph=in_graph).sample(2, seed=4, prompt="a b")
        assert drawn.shape == (2, 8, 8, 3)
        assert np.abs(drawn.astype(int) - expected).max() <= 1


def test_a_dry_run_says_memory_and_time_and_writes_nothing(theirs: Pipeline, tmp_path: Path, capsys):
    assert main(["import", str(theirs.directory), "--out", str(tmp_path / "sd"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    counts = [
        sum(parameter.numel() for part in parts for parameter in part.parameters())
        for parts in ((theirs.unet, theirs.text), (theirs.vae,))
    ]
    assert f"parameters     {sum(counts):,}: {counts[0]:,} of the network, {counts[1]:,} of the autoencoder" in said
    assert re.search(r"memory +\d+ MiB for the weights; [\d,]+ MiB at most in this run", said)
    assert re.search(r"an image +about \d+ s: 50 steps, 100 evaluations of the network of [\d.e-]+ s, and", said)
    assert not (tmp_path / "sd").exists()


# --- the original state dict


def ldm_state(model: Model) -> dict[str, Tensor]:
    """A model of ours under the original names, its text encoder under transformers'."""
    state, prompt = model.network.state_dict(), model.card.config.network
    unet = {name.removeprefix("network."): t for name, t in state.items() if name.startswith("network.")}
    unet["time_mlp.0.weight"] = swap_halves(unet["time_mlp.0.weight"])
    text = {name.removeprefix("text.encoder."): t for name, t in state.items() if name.startswith("text.encoder.")}
    autoencoder, facts = model.autoencoder.network.state_dict(), model.card.data.latent
    modules = {
        ldm.UNET: (unet, dict(openai.module_names(prompt, 4))),
        ldm.FIRST_STAGE: (autoencoder, dict(ldm._autoencoder_modules(facts.network))),
    }
    found = {f"{ldm.CLIP}{name}": tensor for name, tensor in clip.their_weights(text).items()}
    for prefix, (weights, names) in modules.items():
        for name, parts in fused_names(weights, names).items():
            for part, tensor in zip(parts, weights[name].chunk(len(parts)), strict=True):
                found[f"{prefix}{part}"] = tensor.contiguous().clone()
    return found


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """As `theirs`, with a text encoder whose heads are as wide as CLIP's; and one file with the original names."""
    directory = tmp_path_factory.mktemp("original")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "width", 64)
        patch.setitem(SIZES, "heads", 1)
        torch.manual_seed(1)
        unet, vae = moved(UNet2DConditionModel(**UNET | {"cross_attention_dim": 64})), moved(AutoencoderKL(**VAE))
        text = peer("quick_gelu", len(VOCABULARY), LENGTH)
        directory_of(text, directory / "text_encoder", "quick_gelu")
    unet.save_pretrained(directory / "unet")
    vae.save_pretrained(directory / "vae")
    DDIMScheduler(**SCHEDULE, clip_sample=False).save_pretrained(directory / "scheduler")
    (directory / "tokenizer").mkdir()
    pairs = BytePairs(tuple(VOCABULARY), tuple(MERGES), LENGTH)
    numbers = {token: number for number, token in enumerate(pairs.vocabulary)}
    (directory / "tokenizer" / "vocab.json").write_text(json.dumps(numbers))
    (directory / "tokenizer" / "merges.txt").write_text("\n".join(MERGES))
    return Pipeline(unet, vae, text, directory)


@pytest.fixture(scope="module")
def state(original: Pipeline) -> dict[str, Tensor]:
    found, _ = pipeline.read(original.directory, Flags())
    return ldm_state(assemble(found, variant="sd", data_name="sd", fingerprint="0"))


def flags(original: Pipeline, **more) -> Flags:
    return Flags(image_size=8, tokenizer=original.directory / "tokenizer", **more)


def test_diffusers_reads_our_original_names_as_we_do(original: Pipeline, state: dict[str, Tensor]):
    """By its own conversion of such files."""
    config = dict(original.unet.config) | {"class_embed_type": None}
    converted = convert_ldm_unet_checkpoint(dict(state), config)
    assert_same(converted, original.unet.state_dict(), "original file")
    converted = convert_ldm_vae_checkpoint(dict(state), dict(original.vae.config))
    expected = original.vae.state_dict()
    assert_same({name: t.reshape(expected[name].shape) for name, t in converted.items()}, expected, "original file")


@pytest.mark.parametrize("kind", ["safetensors", "ckpt", "averaged"])
def test_an_original_file_is_the_same_model(kind, original: Pipeline, state, tmp_path: Path):
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    full = {**state, "betas": betas, "scale_factor": torch.tensor(0.7), "model_ema.decay": torch.tensor(0.9)}
    if kind == "averaged":
        for name, tensor in state.items():
            if name.startswith("model."):
                full["model_ema." + name.removeprefix("model.").replace(".", "")] = tensor
                full[name] = tensor + 1
    if kind == "safetensors":
        save_file(full, tmp_path / "sd.safetensors")
    else:
        torch.save({"state_dict": full, "global_step": 3}, tmp_path / "sd.ckpt")
    (source,) = tmp_path.iterdir()
    said = import_model(source, tmp_path / "sd", flags(original))
    assert ("averaged weights of model_ema" in said) == (kind == "averaged")
    assert "8 heads are assumed" in said
    model = ddpm.load(tmp_path / "sd")
    expected = assemble(pipeline.read(original.directory, Flags())[0], variant="sd", data_name="sd", fingerprint="0")
    for ours, theirs in ((model.network, expected.network), (model.autoencoder.network, expected.autoencoder.network)):
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in ours.state_dict().items())
    assert model.card.config.process.schedule == "scaled_linear"
    assert model.card.data.latent.scale == pytest.approx(0.7)
    assert model.card.config.network == expected.card.config.network.model_copy(update={"dropout": 0.0})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.update({"control_model.x.weight": torch.zeros(1)}), "unexpected control_model.x.weight"),
        (lambda s: s.update({f"{ldm.UNET}extra.weight": torch.zeros(1)}), "unexpected extra.weight"),
        (lambda s: s.pop(f"{ldm.UNET}middle_block.1.proj_in.weight"), "missing middle_block.1.proj_in.weight"),
        (lambda s: s.pop(f"{ldm.FIRST_STAGE}quant_conv.bias"), "missing quant_conv.bias"),
        (
            lambda s: [s.pop(name) for name in list(s) if name.startswith("cond_stage")],
            r"no text encoder: there is no cond_stage_model\.transformer\.text_model\.\*",
        ),
        (
            lambda s: [s.pop(name) for name in list(s) if name.startswith("first_stage")],
            r"no autoencoder: there is no first_stage_model\.\*",
        ),
        (
            lambda s: s.update({f"{ldm.CLIP}text_model.final_layer_norm.bias": torch.zeros(5)}),
            r"norm\.bias is \[5\], not \[64\]",
        ),
    ],
)
def test_what_an_original_file_lacks_is_named(change, words, original: Pipeline, state):
    damaged = dict(state)
    change(damaged)
    with pytest.raises(UserError, match=words):
        ldm.convert(damaged, flags(original), "sd.ckpt")


def test_an_original_file_needs_a_tokenizer(state):
    with pytest.raises(UserError, match="such a file has no tokenizer: give --tokenizer"):
        ldm.convert(state, Flags(image_size=8), "sd.ckpt")
    with pytest.raises(UserError, match="--noise-schedule does not apply"):
        ldm.convert(state, Flags(noise_schedule="linear"), "sd.ckpt")


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("text_encoder", r"no text_encoder/, the text encoder \(CLIPTextModel\)"),
        ("vae", r"no vae/, the autoencoder \(AutoencoderKL\)"),
        ("tokenizer", "no tokenizer/, the tokenizer"),
    ],
)
def test_what_a_pipeline_lacks_is_named(folder, words, theirs: Pipeline, tmp_path: Path):
    shutil.copytree(theirs.directory, tmp_path / "sd")
    shutil.rmtree(tmp_path / "sd" / folder)
    with pytest.raises(UserError, match=words):
        pipeline.read(tmp_path / "sd", Flags())


@pytest.mark.parametrize(
    ("folder", "change", "words"),
    [
        ("unet", {"cross_attention_dim": 10}, "attends to tokens of width 10, and the text encoder has 12"),
        ("unet", {"in_channels": 9}, "the U-Net has 9 channels in and 4 out, and the autoencoder's latents 4"),
        ("unet", {"addition_embed_type": "text_time"}, "`addition_embed_type`"),
        ("text_encoder", {"vocab_size": 18}, r"another network: tokens\.weight is \[19, 12\], not \[18, 12\]"),
    ],
)
def test_parts_that_do_not_fit_are_named(folder, change, words, theirs: Pipeline, tmp_path: Path):
    shutil.copytree(theirs.directory, tmp_path / "sd")
    path = tmp_path / "sd" / folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=words):
        pipeline.read(tmp_path / "sd", Flags())


@pytest.mark.parametrize("folder", ["unet", "vae", "text_encoder"])
def test_tensors_that_no_part_has_are_named(folder, theirs: Pipeline, tmp_path: Path):
    shutil.copytree(theirs.directory, tmp_path / "sd")
    (file,) = (tmp_path / "sd" / folder).glob("*.safetensors")
    save_file({**load_file(file), "extra.weight": torch.zeros(1)}, file)
    with pytest.raises(UserError, match=rf"{folder}.*: another network: missing nothing; unexpected extra\.weight"):
        pipeline.read(tmp_path / "sd", Flags())


def test_the_filler_and_the_newer_file_of_the_tokenizer_are_read(theirs: Pipeline, tmp_path: Path):
    shutil.copytree(theirs.directory, tmp_path / "sd")
    folder = tmp_path / "sd" / "tokenizer"
    model = {"vocab": json.loads((folder / "vocab.json").read_text()), "merges": [["c", "a"]]}
    (folder / "tokenizer.json").write_text(json.dumps({"model": model}))
    (folder / "vocab.json").unlink()
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": {"content": "b"}}))
    text = pipeline.read(tmp_path / "sd", Flags())[0].text
    assert text.options["filler"] == 1
    assert text.tokenizer["merges"] == "c a"
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": "!"}))
    with pytest.raises(UserError, match="pad_token '!' is not in the vocabulary"):
        pipeline.read(tmp_path / "sd", Flags())
