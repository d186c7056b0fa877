"""diffusers' `PriorTransformer`, theirs to ours: its configuration and the names of its tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, Self

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor

from ddpm.config.base import Positive, validate
from ddpm.config.network import PriorConfig
from ddpm.interop.published import fused_names, parts_of, refuse_other_keys, shaped_like, swap_halves
from ddpm.nets.prior import BESIDES, Prior

CLASS = "PriorTransformer"
PROJECTION = "embedding_proj"  # of the text's embedding; in ours it is of the condition
MEAN, STD = "clip_mean", "clip_std"  # of the embeddings that it draws, a number each
_TIME, _QUERY, _POSITIONS = "time_mlp.0.weight", "query", "positions"
_BLOCK = {
    "norm1": "norm1",
    "q": "attn1.to_q",
    "k": "attn1.to_k",
    "v": "attn1.to_v",
    "out": "attn1.to_out.0",
    "norm2": "norm3",
    "mlp.0": "ff.net.0.proj",
    "mlp.2": "ff.net.2",
}
_FIXED = {
    "time_mlp.0": "time_embedding.linear_1",
    "time_mlp.2": "time_embedding.linear_2",
    "stem": "proj_in",
    "tokens": "encoder_hidden_states_proj",
    "norm_in": "norm_in",
    "norm": "norm_out",
    "out": "proj_to_clip_embeddings",
}
_PARAMETERS = {_QUERY: "prd_embedding", _POSITIONS: "positional_embedding"}


class PriorTransformerConfig(BaseModel, frozen=True):
    """What decides the network in their config.json, with PriorTransformer's defaults and as far as ours has a
    counterpart; other keys are passed over."""

    class_name: Literal["PriorTransformer"] = Field(alias="_class_name")
    num_attention_heads: Positive = 32
    attention_head_dim: Positive = 64
    num_layers: int = Field(20, gt=0, le=1000)
    embedding_dim: Positive = 768
    num_embeddings: int = Field(77, gt=0, le=4096)
    additional_embeddings: int = Field(BESIDES, ge=BESIDES, le=BESIDES)
    dropout: float = Field(0.0, ge=0, lt=1)
    time_embed_act_fn: Literal["silu", "swish"] = "silu"
    norm_in_type: Literal["layer"] | None = None
    embedding_proj_norm_type: None = None
    encoder_hid_proj_type: Literal["linear"] = "linear"
    added_emb_type: Literal["prd"] = "prd"
    time_embed_dim: Positive | None = None
    embedding_proj_dim: Positive | None = None
    clip_embed_dim: Positive | None = None

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def text_embedding(self) -> int:
        """Numbers of a text's embedding."""
        return self.embedding_proj_dim or self.embedding_dim

    @model_validator(mode="after")
    def _ours_has_a_counterpart(self) -> Self:
        for key, expected in (("time_embed_dim", self.width), ("clip_embed_dim", self.embedding_dim)):
            if getattr(self, key) not in (None, expected):
                raise ValueError(f"{key} is {getattr(self, key)}; expected {expected}")
        return self


def prior_config(theirs: PriorTransformerConfig, where: str) -> PriorConfig:
    """Our configuration of theirs.

    Args:
        where: what errors call it.
    """
    options = {"layers": theirs.num_layers, "heads": theirs.num_attention_heads, "dropout": theirs.dropout}
    norm_in = theirs.norm_in_type is not None
    return validate(PriorConfig, {"kind": "prior", "width": theirs.width, "norm_in": norm_in, **options}, where)


def ours_of(theirs: Mapping[str, Tensor], ours: Prior, where: str) -> dict[str, Tensor]:
    """Their weights by our names and in our shapes; those of `PROJECTION`, `MEAN` and `STD` are not of the network.

    Args:
        ours: our network.

    Raises:
        UserError: names are missing or too many, or a shape differs.
    """
    names = _their_names(ours.state_dict(), len(ours.blocks))
    others = [f"{PROJECTION}.weight", f"{PROJECTION}.bias", MEAN, STD]
    refuse_other_keys(theirs, [*others, *(part for parts in names.values() for part in parts)], where)
    weights = {name: torch.cat([theirs[part] for part in parts]) for name, parts in names.items()}
    weights[_TIME] = swap_halves(weights[_TIME])
    for name in _PARAMETERS:
        weights[name] = weights[name].reshape(getattr(ours, name).shape)
    return shaped_like(weights, ours, where)


def _their_names(ours: Iterable[str], layers: int) -> dict[str, list[str]]:
    """Our names, each with theirs, whose tensors one after the other are ours."""
    modules = [name for name in ours if name not in _PARAMETERS]
    return {name: [their] for name, their in _PARAMETERS.items()} | fused_names(modules, dict(_module_names(layers)))


def _module_names(layers: int) -> Iterator[tuple[str, str]]:
    yield from _FIXED.items()
    for number in range(layers):
        yield from parts_of(f"blocks.{number}", f"transformer_blocks.{number}", _BLOCK)
