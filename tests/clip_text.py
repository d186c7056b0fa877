"""CLIP's text encoder out of torch's own transformer layers, and its directory as transformers writes it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from weights import moved

from ddpm.nets.text import ACTIVATIONS, Marks

VOCABULARY, LENGTH = 10, 6  # with the two marks
MARKS = Marks(start=8, end=9, filler=9)
SIZES = {"width": 12, "layers": 2, "heads": 3}


def peer(activation: str, vocabulary: int = VOCABULARY, length: int = LENGTH) -> nn.ModuleDict:
    torch.manual_seed(0)
    width, heads = SIZES["width"], SIZES["heads"]
    layer = nn.TransformerEncoderLayer(
        width, heads, 4 * width, 0.0, ACTIVATIONS[activation](), batch_first=True, norm_first=True
    )
    parts = {
        "tokens": nn.Embedding(vocabulary, width),
        "positions": nn.Embedding(length, width),
        "layers": nn.TransformerEncoder(layer, SIZES["layers"], nn.LayerNorm(width), enable_nested_tensor=False),
    }
    return moved(nn.ModuleDict(parts))


def their_answer(theirs: nn.ModuleDict, marked: Tensor) -> Tensor:
    """[N, L, width] of ids with their marks [N, L]."""
    length = marked.shape[1]
    x = theirs["tokens"](marked) + theirs["positions"](torch.arange(length))
    return theirs["layers"](x, mask=nn.Transformer.generate_square_subsequent_mask(length), is_causal=True)


def state_of(theirs: nn.ModuleDict) -> dict[str, Tensor]:
    """Its weights by the names of transformers' CLIPTextModel."""
    state = {
        "embeddings.token_embedding.weight": theirs["tokens"].weight,
        "embeddings.position_embedding.weight": theirs["positions"].weight,
    }
    renamed = {"self_attn.": "self_attn.", "linear1": "mlp.fc1", "linear2": "mlp.fc2"}
    renamed |= {"norm1": "layer_norm1", "norm2": "layer_norm2", "layers.": "encoder.layers."}
    for name, tensor in theirs["layers"].state_dict().items():
        for ours, new in renamed.items():
            name = name.replace(ours, new)
        outer, in_projection, parameter = name.partition("in_proj_")
        if in_projection:
            parts = dict(zip("qkv", tensor.chunk(3), strict=True))
            state |= {f"{outer}{part}_proj.{parameter}": weight for part, weight in parts.items()}
        elif name.startswith("norm."):
            state[f"final_layer_{name}"] = tensor
        else:
            state[name] = tensor
    return {f"text_model.{name}": tensor.detach().clone() for name, tensor in state.items()}


def config_of(theirs: nn.ModuleDict, activation: str) -> dict:
    return {
        "architectures": ["CLIPTextModel"],
        "hidden_act": activation,
        "hidden_size": SIZES["width"],
        "intermediate_size": 4 * SIZES["width"],
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": theirs["positions"].num_embeddings,
        "model_type": "clip_text_model",
        "num_attention_heads": SIZES["heads"],
        "num_hidden_layers": SIZES["layers"],
        "vocab_size": theirs["tokens"].num_embeddings,
    }


def directory_of(theirs: nn.ModuleDict, directory: Path, activation: str) -> None:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config_of(theirs, activation)))
    save_file(state_of(theirs), directory / "model.safetensors")
