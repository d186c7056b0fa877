"""The names of the tensors of diffusers' `UNet2DModel` and `UNet2DConditionModel`, and which of them ours are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ddpm.config.network import NetworkConfig
from ddpm.interop.published import fused_names, parts_of, transformer_parts

_RESIDUAL = {
    "norm1": "norm1",
    "conv1": "conv1",
    "time": "time_emb_proj",
    "norm2": "norm2",
    "conv2": "conv2",
    "skip": "conv_shortcut",
}
# Theirs are linear layers, and three of them are our one.
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}
_FIXED = {
    "time_embedding": "time_proj",
    "time_mlp.0": "time_embedding.linear_1",
    "time_mlp.2": "time_embedding.linear_2",
    "stem": "conv_in",
    "out_norm": "conv_norm_out",
    "out_conv": "conv_out",
}
# As attentions were called before diffusers 0.14.
_OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


def their_names(network: NetworkConfig, ours: Iterable[str]) -> dict[str, list[str]]:
    """Our names, each with theirs, whose tensors one after the other are ours."""
    return fused_names(ours, dict(_module_names(network)))


def _module_names(network: NetworkConfig) -> Iterator[tuple[str, str]]:
    """Our name and theirs of every module that may hold weights."""
    yield from _FIXED.items()
    attention = transformer_parts(network.transformer_depth) if network.attention == "transformer" else _ATTENTION
    for way, resamplers in (("down", "downsamplers"), ("up", "upsamplers")):
        resample = _RESIDUAL if network.resample == "residual" else {"conv": "conv"}
        for level in range(len(network.multipliers)):
            there = f"{way}_blocks.{level}"
            for block in range(network.blocks + 1):
                yield from parts_of(f"{way}.{level}.residuals.{block}", f"{there}.resnets.{block}", _RESIDUAL)
                yield from parts_of(f"{way}.{level}.attentions.{block}", f"{there}.attentions.{block}", attention)
            yield from parts_of(f"{way}.{level}.resample", f"{there}.{resamplers}.0", resample)
    yield from parts_of("middle_in", "mid_block.resnets.0", _RESIDUAL)
    yield from parts_of("middle_attention", "mid_block.attentions.0", attention)
    yield from parts_of("middle_out", "mid_block.resnets.1", _RESIDUAL)


def new_name(name: str) -> str:
    """A name of any of their versions as today's calls it."""
    for old, new in _OLD_NAMES.items():
        name = name.replace(old, new)
    return name
