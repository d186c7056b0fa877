"""The encoders of a model with a CLIP as ONNX: pictures and texts to embeddings."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ddpm.conditioning.columns import PromptColumn
from ddpm.conditioning.text import Text
from ddpm.deploy.encoders import IMAGE_ENCODER, TEXT_ENCODER, ExportedSpace, ExportedTexts, opener
from ddpm.deploy.runtime import open_on_cpu
from ddpm.export.files import MOST_WEIGHTS, facts, set_metadata, to_onnx, write
from ddpm.model import Model
from ddpm.nets.clip import CLIP


def export_encoders(model: Model, out: Path) -> list[Path]:
    """Write image_encoder.onnx, of pictures x float32 [N, C, H, W] in [−1, 1], and text_encoder.onnx, of the tokens
    `prompt` int64 [N, L], of a model that is conditioned on embeddings; of a prior the latter alone. Both give
    `embedded` float32 [N, D].

    Returns:
        The files; none of other models.
    """
    batch = ({0: torch.export.Dim("N", min=1)},)
    files = []
    for name, (network, example) in _networks(model).items():
        proto = to_onnx(copy.deepcopy(network).to("cpu").eval(), (example,), [_INPUTS[name]], ["embedded"], batch)
        set_metadata(proto, facts(model))
        files.append(out / name)
        write(proto, files[-1], most_weights=MOST_WEIGHTS)
    return files


_INPUTS = {IMAGE_ENCODER: "x", TEXT_ENCODER: "prompt"}


def encoder_differences(model: Model, out: Path, samples: int) -> dict[str, float]:
    """The largest absolute difference between the embeddings of an exported encoder and those of the trained one, by
    the file's name."""
    space, prompts = model.encoder, _prompts(model, samples)
    open_file = opener(out, open_on_cpu)
    if prompts is None:
        return {}
    if space is not None:
        exported = ExportedSpace(open_file, model.card.data.model_dump(mode="json"))
        pictures = np.random.default_rng(2).integers(0, 256, (samples, *space.shape), np.uint8)
        both = {
            IMAGE_ENCODER: (space.images(pictures), exported.images(pictures)),
            TEXT_ENCODER: (space.tokens(prompts), exported.tokens(prompts)),
        }
    else:
        text = _text_of(model)
        assert text is not None
        with torch.inference_mode():
            ours = text.embedding({PromptColumn.name: torch.from_numpy(prompts)}).numpy()
        both = {TEXT_ENCODER: (ours, ExportedTexts(open_file).tokens(prompts))}
    return {name: float(np.abs(one - other).max()) for name, (one, other) in both.items()}


def _networks(model: Model) -> dict[str, tuple[nn.Module, Tensor]]:
    """What is written to each file, with an example of its input."""
    text, prompts = _text_of(model), _prompts(model, 2)
    tokens = None if prompts is None else torch.from_numpy(prompts)
    if model.clip is not None:
        clip = model.clip.network
        assert isinstance(clip, CLIP)
        assert tokens is not None
        pictures = torch.zeros(2, *model.clip.codec.network_shape)
        return {IMAGE_ENCODER: (_Images(clip), pictures), TEXT_ENCODER: (_Texts(clip), tokens)}
    return {} if text is None or tokens is None else {TEXT_ENCODER: (_Embedding(text), tokens)}


def _text_of(model: Model) -> Text | None:
    """The text encoder of a prior that knows the texts' embeddings."""
    text = getattr(model.network, Text.saved_as, None)
    return text if isinstance(text, Text) and text.embed is not None else None


def _prompts(model: Model, count: int) -> NDArray[np.int64] | None:
    """Tokens of texts of several lengths, [count, L]; None of a model without an encoder of texts."""
    space, text = model.encoder, _text_of(model)
    if space is None and text is None:
        return None
    column = space.column if space is not None else cast(Text, text).column
    (length,), tokenizer = column.shape, column.tokenizer
    ids = np.random.default_rng(3).integers(0, tokenizer.size, (count, length), np.int64)
    return np.where(np.arange(length) < np.arange(count)[:, None] % (length + 1), ids, tokenizer.padding)


class _Images(nn.Module):
    """A CLIP's pictures alone."""

    def __init__(self, clip: CLIP) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, x: Tensor) -> Tensor:
        return self.clip(x, torch.zeros(x.shape[0], dtype=torch.int64, device=x.device))


class _Texts(nn.Module):
    """A CLIP's texts alone."""

    def __init__(self, clip: CLIP) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, prompt: Tensor) -> Tensor:
        return self.clip.texts(prompt)


class _Embedding(nn.Module):
    """The embeddings of texts that a prior compares its candidates with."""

    def __init__(self, text: Text) -> None:
        super().__init__()
        self.text = text

    def forward(self, prompt: Tensor) -> Tensor:
        return self.text.embedding({PromptColumn.name: prompt})
