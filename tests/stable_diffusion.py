"""A small pipeline of Stable Diffusion with random weights, in diffusers' own format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import torch
from clip_text import SIZES, directory_of, peer, their_answer
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from weights import moved

LETTERS = "abcdefgh "
VOCABULARY = [*LETTERS[:-1], *(f"{letter}</w>" for letter in LETTERS[:-1]), "ca", "<|startoftext|>", "<|endoftext|>"]
MERGES = ["c a"]
LENGTH = 6
UNET = {
    "sample_size": 4,
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": SIZES["width"],
    "attention_head_dim": 8,
}
VAE = {
    "block_out_channels": (32, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "layers_per_block": 1,
    "scaling_factor": 0.7,
    "sample_size": 8,
}
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


class Pipeline(NamedTuple):
    """diffusers' networks, torch's text encoder, and the directory that they were saved in."""

    unet: nn.Module
    vae: nn.Module
    text: nn.Module
    directory: Path

    def tokens(self, *texts: str) -> Tensor:
        """Of captions in letters that are no merges."""
        ids = [[VOCABULARY.index(f"{letter}</w>") for letter in text.split()] for text in texts]
        start, end = len(VOCABULARY) - 2, len(VOCABULARY) - 1
        marked = [[start, *each, *[end] * (LENGTH - 1 - len(each))] for each in ids]
        return their_answer(self.text, torch.tensor(marked))


def write_pipeline(directory: Path) -> Pipeline:
    """Pictures of 8×8, latents of 4×4, captions in the letters a to h."""
    torch.manual_seed(0)
    unet, vae = moved(UNet2DConditionModel(**UNET)), moved(AutoencoderKL(**VAE))
    text = peer("quick_gelu", len(VOCABULARY), LENGTH)
    unet.save_pretrained(directory / "unet")
    vae.save_pretrained(directory / "vae")
    directory_of(text, directory / "text_encoder", "quick_gelu")
    DDIMScheduler(**SCHEDULE, clip_sample=False, timestep_spacing="trailing").save_pretrained(directory / "scheduler")
    (directory / "tokenizer").mkdir()
    numbers = {token: number for number, token in enumerate(VOCABULARY)}
    (directory / "tokenizer" / "vocab.json").write_text(json.dumps(numbers))
    (directory / "tokenizer" / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]))
    return Pipeline(unet, vae, text, directory)
