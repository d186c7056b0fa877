"""CLIP's text encoder: directories of transformers' `CLIPTextModel`, theirs to ours and ours to theirs. The package
itself is not needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor

from ddpm.config.base import Positive, validate
from ddpm.errors import UserError
from ddpm.interop.folders import TRANSFORMERS, read_config, read_weights, weights_in
from ddpm.interop.published import fused_names, parts_of, refuse_other_keys, shaped_like
from ddpm.nets.text import CLIPText, Marks

MARKS = 2  # positions of the start and the end of a text
# Tensors that a file may have and that say nothing, or are of a use that ours has not.
_UNUSED = ("embeddings.position_ids", "text_projection.weight", "logit_scale")
_OUTER, _POSITIONS = "text_model.", "positions"
_BLOCK = {
    "norm1": "layer_norm1",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "out": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
}


HEAD = 64  # channels of a head of CLIP's encoders
_LAYERS, _OPEN_LAYERS = "encoder.layers.", "transformer.resblocks."
_OPEN_UNUSED = ("text_projection", "logit_scale", "attn_mask")
_OPEN_NAMES = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "ln_final": "final_layer_norm",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "token_embedding": "embeddings.token_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
}


class CLIPTextConfig(BaseModel, frozen=True):
    """What decides the network in their config.json, with CLIPTextModel's defaults and as far as ours has a
    counterpart; other keys are passed over."""

    vocab_size: Positive = 49408
    hidden_size: Positive = 512
    intermediate_size: Positive = 2048
    num_hidden_layers: Positive = 12
    num_attention_heads: Positive = 8
    max_position_embeddings: int = Field(77, gt=MARKS, le=4096)
    hidden_act: Literal["quick_gelu", "gelu"] = "quick_gelu"
    layer_norm_eps: float = Field(1e-5, ge=1e-5, le=1e-5)

    @model_validator(mode="after")
    def _ours_has_a_counterpart(self) -> CLIPTextConfig:
        if self.intermediate_size != 4 * self.hidden_size:
            raise ValueError(
                f"intermediate_size is {self.intermediate_size}; expected 4 times hidden_size, {4 * self.hidden_size}"
            )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads is {self.num_attention_heads}, which does not divide hidden_size "
                f"{self.hidden_size}"
            )
        return self


@dataclass(frozen=True)
class PublishedText:
    """A published text encoder in our terms.

    Attributes:
        options: of `condition.prompt`, but for the tokenizer and the filler.
        vocabulary: how many ids it has.
        weights: those of `nets.text.CLIPText`.
    """

    options: dict[str, Any]
    vocabulary: int
    weights: dict[str, Tensor]


def read(directory: Path) -> tuple[PublishedText, tuple[Path, ...]]:
    """The encoder of such a directory, and the files that have its weights.

    Raises:
        UserError: a file is missing or damaged, or the encoder is of another kind.
    """
    config, files = read_config(directory / "config.json"), weights_in(directory, TRANSFORMERS)
    return convert(config, read_weights(files), str(directory)), files


def convert(config: Mapping[str, Any], theirs: Mapping[str, Tensor], where: str) -> PublishedText:
    """The encoder of a configuration and of weights by any of their names, with `text_model.` before them or without.

    Raises:
        UserError: as `read`.
    """
    found = validate(CLIPTextConfig, config, where)
    length = found.max_position_embeddings - MARKS
    sizes: dict[str, Any] = {
        "width": found.hidden_size,
        "layers": found.num_hidden_layers,
        "heads": found.num_attention_heads,
        "activation": found.hidden_act,
    }
    if found.num_hidden_layers > len(theirs):
        raise UserError(f"{where}: another network: {len(theirs)} tensors for {found.num_hidden_layers} layers")
    with torch.device("meta"):
        ours = CLIPText(found.vocab_size, length, marks=Marks(0, 0, 0), **sizes)
    names = their_names(ours.state_dict())
    plain = {name.removeprefix(_OUTER): tensor for name, tensor in theirs.items()}
    plain = {name: tensor for name, tensor in plain.items() if name not in _UNUSED}
    refuse_other_keys(plain, (part for parts in names.values() for part in parts), where)
    weights = {name: torch.cat([plain[part] for part in parts]) for name, parts in names.items()}
    options = {"encoder": "clip", "length": length, **sizes}
    return PublishedText(options, found.vocab_size, shaped_like(weights, ours, where))


def by_shapes(theirs: Mapping[str, Tensor], activation: str, where: str) -> PublishedText:
    """The encoder of weights without a configuration, by their shapes; its heads are 64 wide, as CLIP's all are.

    Raises:
        UserError: as `read`.
    """
    plain = {name.removeprefix(_OUTER): tensor for name, tensor in theirs.items()}
    telling = [f"embeddings.{name}_embedding.weight" for name in ("token", "position")]
    refuse_other_keys(plain.keys() & set(telling), telling, where)
    embedding, positions = (plain[name] for name in telling)
    width = embedding.shape[-1]
    config = {
        "vocab_size": len(embedding),
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": max(1, len({name.split(".")[2] for name in plain if name.startswith(_LAYERS)})),
        "num_attention_heads": max(1, width // HEAD),
        "max_position_embeddings": len(positions),
        "hidden_act": activation,
    }
    return convert(config, plain, where)


def of_open_clip(theirs: Mapping[str, Tensor], *, without: int = 0) -> dict[str, Tensor]:
    """The weights of open_clip's text tower under the names of transformers.

    Args:
        without: how many of the last blocks are left out.
    """
    blocks = {int(name.split(".")[2]) for name in theirs if name.startswith(_OPEN_LAYERS)}
    last = tuple(f"{_OPEN_LAYERS}{number}." for number in sorted(blocks)[len(blocks) - without :])
    plain: dict[str, Tensor] = {}
    for name, tensor in theirs.items():
        if name in _OPEN_UNUSED or (last and name.startswith(last)):
            continue
        outer, fused, parameter = name.replace(_OPEN_LAYERS, _LAYERS).partition("attn.in_proj_")
        if fused:
            parts = zip("qkv", tensor.chunk(3), strict=True)
            plain |= {f"{outer}self_attn.{part}_proj.{parameter}": each for part, each in parts}
            continue
        for found, new in _OPEN_NAMES.items():
            outer = outer.replace(found, new)
        plain[outer] = tensor
    return plain


def their_config(options: Mapping[str, Any], vocabulary: int, marks: Marks) -> dict[str, Any]:
    """Their config.json of our section `condition.prompt`.

    Args:
        vocabulary: how many ids there are.
    """
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": vocabulary,
        "hidden_size": options["width"],
        "intermediate_size": 4 * options["width"],
        "num_hidden_layers": options["layers"],
        "num_attention_heads": options["heads"],
        "max_position_embeddings": options["length"] + MARKS,
        "hidden_act": options["activation"],
        "layer_norm_eps": 1e-5,
        "bos_token_id": marks.start,
        "eos_token_id": marks.end,
        "pad_token_id": marks.filler,
    }


def their_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights under their names; the inverse of `convert`'s."""
    return {
        f"{_OUTER}{part}": tensor.contiguous()
        for name, parts in their_names(weights).items()
        for part, tensor in zip(parts, weights[name].chunk(len(parts)), strict=True)
    }


def their_names(ours: Iterable[str]) -> dict[str, list[str]]:
    """Our names, each with theirs, whose tensors one after the other are ours."""
    ours = list(ours)
    modules = dict(_modules(len({name.split(".")[1] for name in ours if name.startswith("blocks.")})))
    others = [name for name in ours if name != _POSITIONS]
    return {_POSITIONS: ["embeddings.position_embedding.weight"]} | fused_names(others, modules)


def _modules(layers: int) -> Iterator[tuple[str, str]]:
    """Our name and theirs of every module that has weights, q, k and v each by itself."""
    yield "tokens", "embeddings.token_embedding"
    yield "norm", "final_layer_norm"
    for number in range(layers):
        yield from parts_of(f"blocks.{number}", f"encoder.layers.{number}", _BLOCK)
