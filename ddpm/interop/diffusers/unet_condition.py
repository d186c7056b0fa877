"""The configuration of diffusers' `UNet2DConditionModel`, the U-Net of Stable Diffusion, theirs to ours and back."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from ddpm.config.base import Fraction, Positive, validate
from ddpm.config.network import NetworkConfig
from ddpm.errors import UserError
from ddpm.interop.diffusers.levels import PLAIN, Levels, attends, in_common, refuse_unsupported, their_levels, widths_of

CLASS = "UNet2DConditionModel"
_ATTENDING = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D")
_ONE = Annotated[float, Field(ge=1, le=1)]


class UNet2DConditionConfig(Levels, frozen=True):
    """What decides the network in their config.json, with UNet2DConditionModel's defaults and as far as ours has a
    counterpart; other keys are passed over."""

    class_name: Literal["UNet2DConditionModel"] = Field(alias="_class_name")
    in_channels: Positive = 4
    out_channels: Positive = 4
    center_input_sample: Literal[False] = False
    flip_sin_to_cos: bool = True
    freq_shift: Literal[0, 1] = 0
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    mid_block_type: Literal["UNetMidBlock2DCrossAttn"] = "UNetMidBlock2DCrossAttn"
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    only_cross_attention: Literal[False] = False
    block_out_channels: tuple[Positive, ...] = (320, 640, 1280, 1280)
    layers_per_block: Positive = 2
    downsample_padding: Literal[0, 1] = 1
    mid_block_scale_factor: _ONE = 1
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    act_fn: Literal["silu", "swish"] = "silu"
    norm_num_groups: Positive = 32
    norm_eps: Fraction = 1e-5
    cross_attention_dim: Positive = 1280
    transformer_layers_per_block: Annotated[int, Field(gt=0, le=64)] = 1
    encoder_hid_dim: None = None
    encoder_hid_dim_type: None = None
    # By their names channels of a head; in this class they are heads, one number or one a level.
    attention_head_dim: Positive | tuple[Positive, ...] = 8
    num_attention_heads: Positive | tuple[Positive, ...] | None = None
    dual_cross_attention: Literal[False] = False
    use_linear_projection: bool = False
    class_embed_type: None = None
    addition_embed_type: None = None
    num_class_embeds: None = None
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "default"
    resnet_skip_time_act: Literal[False] = False
    resnet_out_scale_factor: _ONE = 1
    time_embedding_type: Literal["positional"] = "positional"
    time_embedding_dim: None = None
    time_embedding_act_fn: None = None
    timestep_post_act: None = None
    time_cond_proj_dim: None = None
    conv_in_kernel: Literal[3] = 3
    conv_out_kernel: Literal[3] = 3
    attention_type: Literal["default"] = "default"
    class_embeddings_concat: Literal[False] = False
    mid_block_only_cross_attention: Literal[False] | None = None
    cross_attention_norm: None = None

    @property
    def heads(self) -> tuple[int, ...]:
        """Of each level."""
        heads = self.attention_head_dim if self.num_attention_heads is None else self.num_attention_heads
        return heads if isinstance(heads, tuple) else (heads,) * len(self.block_out_channels)


def network_config(theirs: UNet2DConditionConfig, side: int, where: str) -> NetworkConfig:
    """Our configuration of theirs.

    Args:
        side: of x, in pixels or in latents.
        where: what errors call it.

    Raises:
        UserError: it is of blocks or heads that ours lacks.
    """
    return validate(
        NetworkConfig,
        in_common(theirs, side, _attended(theirs, where))
        | _heads(theirs, where)
        | {
            "attention": "transformer",
            "transformer_depth": theirs.transformer_layers_per_block,
            "transformer_projection": "linear" if theirs.use_linear_projection else "conv",
            "downsample_padding": "symmetric" if theirs.downsample_padding else "asymmetric",
        },
        where,
    )


def _attended(theirs: UNet2DConditionConfig, where: str) -> list[int]:
    """The levels with attention, from 0."""
    theirs.refuse_other_pairs([PLAIN, _ATTENDING], where)
    return [level for level, pair in enumerate(theirs.pairs) if pair == _ATTENDING]


def _heads(theirs: UNet2DConditionConfig, where: str) -> dict[str, int]:
    """As many at each level, or of as many channels."""
    heads, widths = theirs.heads, theirs.block_out_channels
    if len(heads) == len(widths):
        if len(set(heads)) == 1:
            return {"heads": heads[0]}
        channels = {c / count for c, count in zip(widths, heads, strict=True)}
        if len(channels) == 1 and (of_each := channels.pop()) == int(of_each):
            return {"head_channels": int(of_each)}
    raise UserError(
        f"{where}: its heads are {list(heads)} at {list(widths)} channels; ddpm has as many at each level, or heads of "
        "as many channels"
    )


def their_config(network: NetworkConfig, side: int, channels: int, out_channels: int, tokens: int) -> dict[str, Any]:
    """Their config.json of our configuration.

    Args:
        side: of x.
        tokens: their width.

    Raises:
        UserError: the network uses what UNet2DConditionModel lacks; the message names the key.
    """
    refuse_unsupported(network, CLASS, attention="transformer", middle_attention=True, resample="conv")
    pairs = [_ATTENDING if attend else PLAIN for attend in attends(network, side)]
    of_each = network.head_channels
    return their_levels(network, CLASS, (channels, side), out_channels, pairs) | {
        "cross_attention_dim": tokens,
        "transformer_layers_per_block": network.transformer_depth,
        "attention_head_dim": [max(1, c // of_each) for c in widths_of(network)] if of_each else network.heads,
        "use_linear_projection": network.transformer_projection == "linear",
    }
