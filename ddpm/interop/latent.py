"""What Stable Diffusion's two formats have in common: a U-Net of latents with its autoencoder and its text encoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ddpm.codecs.latent import Latent
from ddpm.codecs.scale import PixelCodec
from ddpm.conditioning.tokenizers import BytePairs
from ddpm.config.network import NetworkConfig
from ddpm.config.process import ProcessConfig
from ddpm.config.sampling import SamplingConfig
from ddpm.errors import UserError
from ddpm.interop.clip import PublishedText
from ddpm.interop.folders import read_config
from ddpm.interop.published import Autoencoder, Published, Text

GUIDANCE_SCALE = 7.5  # of Stable Diffusion's pipelines, where nobody says another
TOKENIZER_FILES = ("special_tokens_map.json", "tokenizer_config.json")


def assembled(
    network: NetworkConfig,
    weights: Mapping[str, Tensor],
    process: ProcessConfig,
    sampling: SamplingConfig,
    *,
    side: int,
    channels: int,
    autoencoder: Autoencoder,
    text: Text,
    notes: tuple[str, ...] = (),
) -> Published:
    """The model of its parts.

    Args:
        side: of the latents.
        channels: of the pictures.
    """
    factor = 2 ** (len(autoencoder.network.multipliers) - 1)
    pixels = PixelCodec((side * factor, side * factor, channels))
    codec = Latent(pixels, (autoencoder.network.latent_channels, side, side), autoencoder.scale)
    sampling = sampling.model_copy(update={"clip": False, "guidance_scale": GUIDANCE_SCALE})
    plan = f"guidance_scale {GUIDANCE_SCALE:g}, the pipelines' default"
    return Published(
        network, process, sampling, codec, dict(weights), (*notes, plan), text=text, autoencoder=autoencoder
    )


def text_of(published: PublishedText, tokenizer: Path, where: str) -> Text:
    """A text encoder with its tokenizer.

    Args:
        tokenizer: the directory with CLIP's files.

    Raises:
        UserError: a file is missing or damaged, or is of another number of tokens than the encoder.
    """
    pairs = BytePairs.read(tokenizer, published.options["length"], where)
    if pairs.size != published.vocabulary:
        raise UserError(
            f"{where}: the tokenizer in {tokenizer} has {pairs.size} tokens, the text encoder {published.vocabulary}"
        )
    options = {**published.options, "tokenizer": "bpe", "pooled": False, "filler": _filler(tokenizer, pairs, where)}
    weights = {f"encoder.{name}": tensor for name, tensor in published.weights.items()}
    return Text(options, pairs.as_json(), weights)


def _filler(directory: Path, tokenizer: BytePairs, where: str) -> int | None:
    """The id after a caption's end, where it is not the end's."""
    for name in TOKENIZER_FILES:
        path = directory / name
        token: Any = read_config(path).get("pad_token") if path.exists() else None
        token = token.get("content") if isinstance(token, dict) else token
        if token is None:
            continue
        if token not in tokenizer.vocabulary:
            raise UserError(f"{where}: {path}: pad_token {token!r:.40} is not in the vocabulary")
        found = tokenizer.vocabulary.index(token)
        return None if found == tokenizer.padding else found
    return None


def check_fit(
    network_channels: int, out_channels: int, context: int, autoencoder: Autoencoder, text: Text, where: str
) -> None:
    """
    Args:
        network_channels: that the U-Net takes.
        out_channels: that it answers with.
        context: width of its tokens.

    Raises:
        UserError: the three parts are not of one model.
    """
    latents, width = autoencoder.network.latent_channels, text.options["width"]
    if (network_channels, out_channels) != (latents, latents):
        raise UserError(
            f"{where}: the U-Net has {network_channels} channels in and {out_channels} out, and the autoencoder's "
            f"latents {latents}; ddpm imports models whose U-Net takes latents alone"
        )
    if context != width:
        raise UserError(f"{where}: the U-Net attends to tokens of width {context}, and the text encoder has {width}")
