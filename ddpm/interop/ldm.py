"""State dicts of CompVis' latent-diffusion and Stable Diffusion: U-Net, autoencoder and text encoder in one file.

Its U-Net is OpenAI's with spatial transformers, so the names of modules are numbered through. What the shapes do not
tell, the number of heads or the size of the pictures, is Stable Diffusion's unless a flag says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddpm.config.base import validate
from ddpm.config.network import AutoencoderConfig, NetworkConfig
from ddpm.config.process import Prediction, ProcessConfig
from ddpm.config.sampling import SamplingConfig
from ddpm.errors import UserError
from ddpm.interop import clip, openai
from ddpm.interop.clip import PublishedText
from ddpm.interop.latent import assembled, check_fit, text_of
from ddpm.interop.published import (
    Autoencoder,
    Flags,
    Published,
    fused_names,
    network_of,
    parts_of,
    process_of,
    refuse_other_keys,
    shaped_like,
    swap_halves,
)
from ddpm.nets.autoencoder import AutoencoderKL
from ddpm.nets.condition import Ports, Shapes

UNET, FIRST_STAGE = "model.diffusion_model.", "first_stage_model."
CLIP, OPEN_CLIP = "cond_stage_model.transformer.", "cond_stage_model.model."
_EMA = "model_ema."
_PARTS = (UNET, FIRST_STAGE, CLIP, OPEN_CLIP, _EMA)
SIDE, SCALE, TIMESTEPS = 512, 0.18215, 1000  # of Stable Diffusion
GROUPS = 32
_PREDICTIONS: dict[str, Prediction] = {"eps": "epsilon", "x0": "x0", "v": "v"}
_RESIDUAL = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "skip": "nin_shortcut"}
_ATTENTION = {"norm": "norm", "q": "q", "k": "k", "v": "v", "out": "proj_out"}


def is_theirs(saved: Mapping[str, Any]) -> bool:
    """Whether a file holds such a state dict, by itself or under `state_dict`."""
    return any(isinstance(name, str) and name.startswith(UNET) for name in state_of(saved))


def state_of(saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state dict within what the training wrote."""
    inner = saved.get("state_dict")
    return inner if isinstance(inner, Mapping) else saved


def convert(theirs: Mapping[str, Tensor], flags: Flags, where: str) -> Published:
    """The model of a state dict.

    Args:
        theirs: the tensors by their names.
        flags: `tokenizer`, which no such file has; `image_size`, `num_heads` or `num_head_channels`, and
            `parameterization`, where they are not those of Stable Diffusion 1, or of 2.

    Raises:
        UserError: it lacks a part or is of another network, or there is no tokenizer.
    """
    used = {"image_size", "num_heads", "num_head_channels", "parameterization", "tokenizer"}
    flags.refuse_but(used, f"{where}: a latent diffusion model")
    _refuse_strangers(theirs, where)
    if not _below(FIRST_STAGE, theirs):
        raise UserError(f"{where}: no autoencoder: there is no {FIRST_STAGE}*")
    autoencoder, channels = _autoencoder(_below(FIRST_STAGE, theirs), float(theirs.get("scale_factor", SCALE)), where)
    published = _text_encoder(theirs, where)
    if flags.tokenizer is None:
        raise UserError(f"{where}: such a file has no tokenizer: give --tokenizer, a directory with CLIP's vocab.json")
    text = text_of(published, flags.tokenizer, where)
    if _below(OPEN_CLIP, theirs):
        text.options["filler"] = 0  # as open_clip's tokenizer has it
    unet, averaged = _averaged(theirs)
    factor = 2 ** (len(autoencoder.network.multipliers) - 1)
    side = (flags.image_size or SIDE) // factor
    found = _unet(unet, side, flags, where)
    check_fit(found.channels, found.out_channels, found.context, autoencoder, text, where)
    process, notes = _process(theirs, flags, where)
    heads = found.network.head_channels or found.network.heads
    kind = "channels a head" if found.network.head_channels else "heads"
    notes += (
        *(["averaged weights of model_ema"] if averaged else []),
        *([] if flags.image_size else [f"--image-size {SIDE} is assumed"]),
        *([] if flags.num_heads or flags.num_head_channels else [f"{heads} {kind} are assumed"]),
    )
    sampling = SamplingConfig(sampler="ddim", steps=min(50, process.timesteps))
    return assembled(
        found.network,
        found.weights,
        process,
        sampling,
        side=side,
        channels=channels,
        autoencoder=autoencoder,
        text=text,
        notes=notes,
    )


def _refuse_strangers(theirs: Mapping[str, Tensor], where: str) -> None:
    """
    Raises:
        UserError: there is a part that ddpm does not know. What has no part is a table of the process.
    """
    strangers = [name for name in theirs if "." in name and not name.startswith(_PARTS)]
    refuse_other_keys(strangers, [], where)


def _below(prefix: str, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in theirs.items() if name.startswith(prefix)}


def _averaged(theirs: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
    """The U-Net's tensors, and whether they are averages, which are taken if there are some. The names of averages have
    no points."""
    unet = _below(UNET, theirs)
    flat = {name: _EMA + f"{UNET.removeprefix('model.')}{name}".replace(".", "") for name in unet}
    averaged = all(each in theirs for each in flat.values())
    return ({name: theirs[each] for name, each in flat.items()} if averaged else unet), averaged


def _process(theirs: Mapping[str, Tensor], flags: Flags, where: str) -> tuple[ProcessConfig, tuple[str, ...]]:
    """By the betas in the file, or Stable Diffusion's."""
    notes: tuple[str, ...] = ()
    if "betas" in theirs:
        # They are float32 there, or half precision.
        process = process_of(theirs["betas"].double().numpy(), ("linear", "scaled_linear"), where, rtol=2e-3, atol=0)
    else:
        process = {"timesteps": TIMESTEPS, "schedule": "scaled_linear"}
        notes = (f"schedule scaled_linear of {TIMESTEPS} steps is assumed",)
    if flags.parameterization is None:
        notes += ("--parameterization eps is assumed",)
    process |= {"prediction": _PREDICTIONS[flags.parameterization or "eps"], "variance": "fixed_small"}
    return validate(ProcessConfig, process, where), notes


# --- the U-Net


class _UNet(NamedTuple):
    network: NetworkConfig
    weights: dict[str, Tensor]
    channels: int
    out_channels: int
    context: int


def _unet(theirs: Mapping[str, Tensor], side: int, flags: Flags, where: str) -> _UNet:
    """The U-Net of its tensors.

    Args:
        side: of the latents.
    """
    always = openai.TELLING | {"out.2.bias"}
    refuse_other_keys(theirs.keys() & always, always, where)
    resample, blocks, levels = openai.layout_of(theirs, where)
    widths, attended = openai.levels_of(theirs, blocks, levels, where)
    width = theirs["time_embed.0.weight"].shape[1]
    first = next((f"input_blocks.{1 + level * (blocks + 1)}.1." for level in attended), "middle_block.1.")
    telling = ("proj_in.weight", "transformer_blocks.0.attn2.to_k.weight")
    projection, context = (theirs.get(f"{first}{name}") for name in telling)
    if projection is None or context is None or any(c % width for c in widths):
        raise UserError(f"{where}: its U-Net has no spatial transformers of channels that are multiples of {width}")
    linear = projection.ndim == 2
    depth = len({name.split(".")[4] for name in theirs if name.startswith(f"{first}transformer_blocks.")})
    network = validate(
        NetworkConfig,
        {
            "width": width,
            "multipliers": [c // width for c in widths],
            "blocks": blocks,
            "attention_resolutions": [side // 2**level for level in attended],
            **_heads(flags, linear),
            "attention": "transformer",
            "transformer_depth": depth,
            "transformer_projection": "linear" if linear else "conv",
            "groups": GROUPS,
            "dropout": 0.0,
            "resample": resample,
            "frequency_shift": 0,
        },
        where,
    )
    channels, out_channels = theirs["input_blocks.0.0.weight"].shape[1], len(theirs["out.2.bias"])
    ours = network_of(network, (channels, side, side), out_channels, where, Ports(tokens=context.shape[1]))
    names = fused_names(ours.state_dict(), dict(openai.module_names(network, side)))
    refuse_other_keys(theirs, (part for parts in names.values() for part in parts), where)
    weights = {name: torch.cat([theirs[part] for part in parts]) for name, parts in names.items()}
    weights["time_mlp.0.weight"] = swap_halves(weights["time_mlp.0.weight"])
    return _UNet(network, shaped_like(weights, ours, where), channels, out_channels, context.shape[1])


def _heads(flags: Flags, linear: bool) -> dict[str, int]:
    """As given, or as Stable Diffusion 1 has them, or 2, whose projections are linear layers."""
    if flags.num_head_channels:
        return {"head_channels": flags.num_head_channels}
    if flags.num_heads:
        return {"heads": flags.num_heads}
    return {"head_channels": 64} if linear else {"heads": 8}


# --- the autoencoder


def _autoencoder(theirs: Mapping[str, Tensor], scale: float, where: str) -> tuple[Autoencoder, int]:
    """The autoencoder, and the channels of its pictures."""
    theirs = {name: tensor for name, tensor in theirs.items() if not name.startswith("loss.")}
    telling = {"encoder.conv_in.weight", "post_quant_conv.weight", "encoder.down.0.block.0.conv1.weight"}
    refuse_other_keys(theirs.keys() & telling, telling, where)
    width, channels = theirs["encoder.conv_in.weight"].shape[:2]
    levels, blocks = (_count(theirs, prefix) for prefix in ("encoder.down.", "encoder.down.0.block."))
    widths = [len(theirs.get(f"encoder.down.{level}.block.0.conv1.weight", ())) for level in range(levels)]
    network = validate(
        AutoencoderConfig,
        {
            "kind": "autoencoder",
            "width": width,
            "multipliers": [c // width for c in widths],
            "blocks": blocks,
            "latent_channels": len(theirs["post_quant_conv.weight"]),
            "middle_attention": "encoder.mid.attn_1.norm.weight" in theirs,
            "groups": GROUPS,
        },
        where,
    )
    with torch.device("meta"):
        options = network.model_dump(exclude={"kind"})
        ours = AutoencoderKL(Shapes((channels, 2**levels, 2**levels)), **options)
    names = fused_names(ours.state_dict(), dict(_autoencoder_modules(network)))
    refuse_other_keys(theirs, (part for parts in names.values() for part in parts), where)
    weights = {name: torch.cat([theirs[part] for part in parts]) for name, parts in names.items()}
    return Autoencoder(network, shaped_like(weights, ours, where), scale), channels


def _count(theirs: Mapping[str, Tensor], prefix: str) -> int:
    """How many modules are numbered below a prefix."""
    place = prefix.count(".")
    return len({name.split(".")[place] for name in theirs if name.startswith(prefix)})


def _autoencoder_modules(network: AutoencoderConfig) -> Iterator[tuple[str, str]]:
    """Our name and theirs of every module that may hold weights. Their levels are numbered from the largest, also those
    of the decoder."""
    yield "to_moments", "quant_conv"
    yield "from_latent", "post_quant_conv"
    ends = {"stem": "conv_in", "out_norm": "norm_out", "out_conv": "conv_out"}
    last = len(network.multipliers) - 1
    for half, way, resample in (("encoder", "down", "downsample"), ("decoder", "up", "upsample")):
        yield from parts_of(half, half, ends)
        for level in range(last + 1):
            ours = f"{half}.{way}.{level if way == 'down' else last - level}"
            theirs = f"{half}.{way}.{level}"
            for block in range(network.blocks + 1):
                yield from parts_of(f"{ours}.residuals.{block}", f"{theirs}.block.{block}", _RESIDUAL)
            yield f"{ours}.resample.conv", f"{theirs}.{resample}.conv"
        yield from parts_of(f"{half}.middle.residual_in", f"{half}.mid.block_1", _RESIDUAL)
        yield from parts_of(f"{half}.middle.residual_out", f"{half}.mid.block_2", _RESIDUAL)
        yield from parts_of(f"{half}.middle.attention", f"{half}.mid.attn_1", _ATTENTION)


# --- the text encoder


def _text_encoder(theirs: Mapping[str, Tensor], where: str) -> PublishedText:
    """CLIP's, with transformers' names, or with open_clip's, whose last block Stable Diffusion 2 leaves out.

    Raises:
        UserError: there is none, or it is another network.
    """
    if found := _below(CLIP, theirs):
        return clip.by_shapes(found, "quick_gelu", where)
    if found := _below(OPEN_CLIP, theirs):
        return clip.by_shapes(clip.of_open_clip(found, without=1), "gelu", where)
    raise UserError(f"{where}: no text encoder: there is no {CLIP}text_model.* or {OPEN_CLIP}*")
