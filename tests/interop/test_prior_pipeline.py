"""A pipeline with a prior, imported: held against diffusers' PriorTransformer and UnCLIPScheduler."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_text import LENGTH, SIZES, directory_of, peer, their_answer
from diffusers import PriorTransformer, UnCLIPScheduler
from safetensors.torch import load_file, save_file
from weights import moved

import ddpm
from ddpm.diffusion.noise import ImageNoise
from ddpm.errors import UserError
from ddpm.interop.published import Flags
from ddpm.stages.interop import import_model

NUMBERS = SIZES["width"]  # of an embedding; theirs have tokens of the same width
EMBEDDING = 10  # numbers of a text's embedding
LETTERS = "abc"
VOCABULARY = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "ab", "<|startoftext|>", "<|endoftext|>"]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory):
    directory = tmp_path_factory.mktemp("theirs")
    torch.manual_seed(0)
    prior = moved(
        PriorTransformer(
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            embedding_dim=NUMBERS,
            num_embeddings=LENGTH,
            embedding_proj_dim=EMBEDDING,
        )
    )
    with torch.no_grad():
        prior.clip_std.abs_().add_(0.5)
    text = peer("gelu", vocabulary=len(VOCABULARY))
    projection = torch.randn(EMBEDDING, SIZES["width"]) / 4
    prior.save_pretrained(directory / "prior")
    UnCLIPScheduler(clip_sample_range=5.0, prediction_type="sample").save_pretrained(directory / "scheduler")
    directory_of(text, directory / "text_encoder", "gelu")
    file = directory / "text_encoder" / "model.safetensors"
    save_file({**load_file(file), "text_projection.weight": projection}, file)
    (directory / "tokenizer").mkdir()
    vocabulary = {token: number for number, token in enumerate(VOCABULARY)}
    (directory / "tokenizer" / "vocab.json").write_text(json.dumps(vocabulary))
    (directory / "tokenizer" / "merges.txt").write_text("#version: 0.2\na b\n")
    return directory, prior, text, projection


@pytest.fixture(scope="module")
def ours(theirs, tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("ours") / "prior"
    said = import_model(theirs[0], out, Flags())
    assert "guidance_scale 4" in said
    return ddpm.load(out)


def asked(theirs, *texts: str):
    """The text's embedding, tokens and mask, as diffusers' pipelines give them to the prior."""
    _, _, text, projection = theirs
    start, end = len(VOCABULARY) - 2, len(VOCABULARY) - 1
    ids = [[VOCABULARY.index(f"{letter}</w>") for letter in each.split()] for each in texts]
    marked = torch.tensor([[start, *each, *[end] * (LENGTH - 1 - len(each))] for each in ids])
    tokens, ends = their_answer(text, marked), torch.tensor([1 + len(each) for each in ids])
    mask = torch.arange(LENGTH) <= ends[:, None]
    return tokens[torch.arange(len(ids)), ends] @ projection.T, tokens, mask


@torch.no_grad()
def test_the_whole_model_is_theirs(theirs, ours):
    embedding, tokens, mask = asked(theirs, "c a", "", "b b c a")
    x, t = torch.randn(3, NUMBERS, generator=torch.Generator().manual_seed(2)), torch.tensor([0, 400, 999])
    expected = theirs[1](x, t, embedding, tokens, mask).predicted_image_embedding
    given = ours.given(3, prompt=["c a", "", "b b c a"])
    found = ours.denoiser(given)(x, t)
    assert ((found - expected).norm() / expected.norm()).item() < 1e-5


@torch.no_grad()
def test_sampled_as_theirs(theirs, ours):
    """Guided sampling of KandinskyPriorPipeline, step by step with the same noise, and its last scaling."""
    _, prior, _, _ = theirs
    steps, scale, count = 5, 3.0, 2
    scheduler = UnCLIPScheduler(clip_sample_range=5.0, prediction_type="sample")
    scheduler.set_timesteps(steps)
    # Its own are float32, in which 1 − ᾱ of the least noise is off by a thousandth.
    scheduler.betas = scheduler.betas.double()
    scheduler.alphas_cumprod = torch.cumprod(1 - scheduler.betas, dim=0)
    embedding, tokens, mask = asked(theirs, "", "", "a", "c b")
    noise = ImageNoise(7, count, (NUMBERS,))
    x = torch.from_numpy(noise.draw())
    for i, t in enumerate(scheduler.timesteps):
        out = prior(torch.cat([x, x]), t, embedding, tokens, mask).predicted_image_embedding
        null, conditional = out.chunk(2)
        out = null + scale * (conditional - null)
        earlier = scheduler.timesteps[i + 1] if i + 1 < steps else None
        mean = scheduler.step(out, t, x, prev_timestep=earlier, generator=torch.Generator().manual_seed(0)).prev_sample
        if t > 0:  # the same step with our noise in place of theirs
            own = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
            std = scheduler._get_variance(t, prev_timestep=earlier)
            mean = mean + std * (torch.from_numpy(noise.draw()) - own)
        x = mean.float()
    expected = prior.post_process_latents(x).numpy()
    found = ours.sample(count, seed=7, prompt=["a", "c b"], steps=steps, guidance_scale=scale)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_the_priors_own_folder_will_do(theirs, tmp_path):
    import_model(theirs[0] / "prior", tmp_path / "same", Flags())
    assert ddpm.load(tmp_path / "same").codec.shape == (NUMBERS,)


@pytest.mark.parametrize("missing", ["text_encoder", "tokenizer", "scheduler"])
def test_a_missing_part_is_named(theirs, tmp_path, missing):
    directory = tmp_path / "theirs"
    shutil.copytree(theirs[0], directory)
    shutil.rmtree(directory / missing)
    with pytest.raises(UserError, match=f"no {'prior_' if missing == 'scheduler' else ''}{missing}/"):
        import_model(directory, tmp_path / "ours", Flags())
    assert not (tmp_path / "ours").exists()


def changed(path: Path, **keys) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def test_another_scheduler_of_theirs_is_named(theirs, tmp_path):
    directory = tmp_path / "theirs"
    shutil.copytree(theirs[0], directory)
    changed(directory / "scheduler" / "scheduler_config.json", variance_type="learned_range")
    with pytest.raises(UserError, match="variance_type"):
        import_model(directory, tmp_path / "ours", Flags())


def test_an_encoder_without_projection_is_refused(theirs, tmp_path):
    directory = tmp_path / "theirs"
    shutil.copytree(theirs[0], directory)
    file = directory / "text_encoder" / "model.safetensors"
    save_file({name: each for name, each in load_file(file).items() if "projection" not in name}, file)
    with pytest.raises(UserError, match=r"no text_projection\.weight"):
        import_model(directory, tmp_path / "ours", Flags())
