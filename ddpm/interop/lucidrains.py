"""Checkpoints of denoising_diffusion_pytorch (its Unet, Unet1D and classifier_free_guidance's Unet) as linear-attention
U-Nets of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm.codecs.scale import Codec, PixelCodec, ValueCodec
from ddpm.config.base import validate
from ddpm.config.network import LinearAttentionConfig
from ddpm.config.process import ProcessConfig
from ddpm.config.sampling import SamplingConfig
from ddpm.diffusion.schedules import Schedule
from ddpm.errors import UserError
from ddpm.interop.published import Flags, Published, classes_of, network_of, process_of, refuse_other_keys, shaped_like
from ddpm.interop.saved import tensors_alone

# Our names to theirs, each rule applied in turn.
_RENAMED = [
    (r"^time_mlp\.0\.", "time_mlp.1."),
    (r"^time_mlp\.2\.", "time_mlp.3."),
    (r"^stem\.", "init_conv."),
    (r"^out_conv\.", "final_conv."),
    (r"^out_block\.", "final_res_block."),
    (r"^middle_in\.", "mid_block1."),
    (r"^middle_out\.", "mid_block2."),
    (r"^middle_attention\.", "mid_attn."),
    (r"^(down|up)\.(\d+)\.block1\.", r"\1s.\2.0."),
    (r"^(down|up)\.(\d+)\.block2\.", r"\1s.\2.1."),
    (r"^(down|up)\.(\d+)\.attention\.", r"\1s.\2.2."),
    (r"^(down|up)\.(\d+)\.resample\.conv\.", r"\1s.\2.3.1."),
    (r"^(down|up)\.(\d+)\.resample\.", r"\1s.\2.3."),
    (r"\.time\.", ".mlp.1."),
    (r"\.conv([12])\.", r".block\1.proj."),
    (r"\.norm([12])\.gain$", r".block\1.norm.g"),
    (r"\.skip\.", ".res_conv."),
    (r"\.qkv\.", ".to_qkv."),
    (r"\.memory$", ".mem_kv"),
    (r"\.out_norm\.gain$", ".to_out.1.g"),
    (r"\.norm\.gain$", ".norm.g"),
]
_PREFIXES = ("init_conv.", "time_mlp.", "downs.", "mid_", "ups.", "final_")
# Our names of what embeds the classes, and theirs. The null class, which has a tensor of its own, is our last row.
_CLASSES = {
    "embedding.weight": "classes_emb.weight",
    **{f"perceptron.{part}": f"classes_mlp.{part}" for part in ("0.weight", "0.bias", "2.weight", "2.bias")},
}
_NULL = "null_classes_emb"
# Those that any such network has and whose shapes tell it.
_TELLING = {"init_conv.weight", "time_mlp.1.weight", "final_conv.weight"}
# Of an attention inside a norm inside a residual sum: in Unet1D, and in classifier_free_guidance's Unet.
_WRAPPED = "mid_attn.fn.fn.to_qkv.weight"
# Those of a GaussianDiffusion that tell the process.
_BUFFERS = {"betas", "loss_weight"}


def is_theirs(saved: Mapping[str, Any]) -> bool:
    """Whether a file's content is what the package saves: a Trainer's, a GaussianDiffusion's, or a network's alone."""
    return isinstance(saved.get("model"), Mapping) or bool(saved.keys() & {"betas", "init_conv.weight"})


def convert(saved: Mapping[str, Any], flags: Flags, where: str = "checkpoint") -> Published:
    """The network and the process of a checkpoint.

    Args:
        saved: what a Trainer saves, of which the averaged weights are taken, or the state_dict of a GaussianDiffusion
            or a GaussianDiffusion1D.
        where: what errors call it.

    Raises:
        UserError: it is of another network, or of an option that ours lacks, or a flag that it needs was not given.
    """
    diffusion = tensors_alone(_diffusion(saved), where)
    theirs = {key.removeprefix("model."): value for key, value in diffusion.items() if key.startswith("model.")}
    theirs = theirs or diffusion
    labels = _labels(theirs, where)
    theirs = {name: tensor for name, tensor in theirs.items() if not name.startswith(("classes_", _NULL))}
    strangers = {name for name in theirs if not name.startswith(_PREFIXES)}
    refuse_other_keys(strangers | (theirs.keys() & _TELLING), _TELLING, where)
    if not diffusion.keys() >= _BUFFERS:
        raise UserError(
            f"{where}: only a network; its process is in the GaussianDiffusion around it: save that instead"
        )
    try:
        network = _network(theirs, labels is not None, where)
    except KeyError as error:
        raise UserError(f"{where}: another network: missing {error.args[0]}") from None
    codec = _kind(theirs["init_conv.weight"], flags, where)
    out_channels = len(theirs["final_conv.weight"])
    ours = network_of(network, codec.network_shape, out_channels, where)
    process = _process(diffusion, out_channels > codec.network_shape[0], where)
    sampling = SamplingConfig(sampler="ancestral", steps=process.timesteps)
    weights = _renamed(theirs, ours.state_dict(), where)
    classes = classes_of(labels, ours, where, name=_CLASSES["embedding.weight"], null=labels is not None)
    return Published(network, process, sampling, codec, shaped_like(weights, ours, where), labels=classes)


def _labels(theirs: Mapping[str, Tensor], where: str) -> dict[str, Tensor] | None:
    """What embeds the classes under our names, of the network that has them."""
    found = {name for name in theirs if name.startswith(("classes_", _NULL))}
    if not found:
        return None
    refuse_other_keys(found, [*_CLASSES.values(), _NULL], where)
    labels = {name: theirs[their_name] for name, their_name in _CLASSES.items()}
    table, null = labels["embedding.weight"], theirs[_NULL]
    if table.ndim != 2 or null.shape != table.shape[1:]:
        raise UserError(
            f"{where}: {_NULL} is {list(null.shape)} and {_CLASSES['embedding.weight']} {list(table.shape)}; expected "
            "[E] and [K, E]"
        )
    return labels | {"embedding.weight": torch.cat([table, null[None]])}


def _diffusion(saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """The GaussianDiffusion's tensors out of what a Trainer saves around them."""
    if isinstance(saved.get("ema"), Mapping):
        ema = saved["ema"]
        return {key.removeprefix("ema_model."): value for key, value in ema.items() if key.startswith("ema_model.")}
    return saved["model"] if isinstance(saved.get("model"), Mapping) else saved


def _kind(stem: Tensor, flags: Flags, where: str) -> Codec:
    """Of the data: the first convolution tells the channels and the axes, the flags the rest."""
    channels = stem.shape[1]
    of_sequences = stem.ndim == 3
    used = {"seq_length", "auto_normalize"} if of_sequences else {"image_size"}
    flags.refuse_but(used, f"{where}: a network of {'sequences' if of_sequences else 'images'}")
    if of_sequences:
        if flags.seq_length is None:
            raise UserError(f"{where}: it is of sequences, whose length it does not tell: give --seq-length")
        low = 0.0 if flags.auto_normalize else -1.0
        return ValueCodec("sequences", (channels, flags.seq_length), low=(low,) * channels, high=(1.0,) * channels)
    if flags.image_size is None:
        raise UserError(f"{where}: it is of images, whose size it does not tell: give --image-size")
    if channels not in (1, 3):
        raise UserError(f"{where}: {channels} channels: not a denoiser of grey or RGB images")
    return PixelCodec((flags.image_size, flags.image_size, channels))


def _network(theirs: Mapping[str, Tensor], concatenates: bool, where: str) -> LinearAttentionConfig:
    """The configuration, as the shapes tell it."""
    stem = theirs["init_conv.weight"]
    width, channels, dims = stem.shape[0], stem.shape[1], stem.ndim - 2
    out_channels = len(theirs["final_conv.weight"])
    levels = len({key.split(".")[1] for key in theirs if key.startswith("downs.")})
    unshuffles = "downs.0.3.1.weight" in theirs
    resamples = [f"downs.{level}.3{'.1' * (unshuffles and level < levels - 1)}.weight" for level in range(levels)]
    multipliers = [theirs[name].shape[0] / width for name in resamples]
    # Where the attention is wrapped, it has no memory, which would tell the heads; its linear attentions have four.
    wrapped = _WRAPPED in theirs
    inner = theirs[_WRAPPED if wrapped else "mid_attn.to_qkv.weight"].shape[0] // 3
    _, heads, memory, head_width = (2, 4, 0, 32) if wrapped else theirs["mid_attn.mem_kv"].shape
    unsupported = {
        f"convolutions of {dims} axes": dims not in (1, 2),
        "random or learned Fourier features of the time": "time_mlp.0.weights" in theirs,
        "an init_dim other than dim": theirs["time_mlp.1.weight"].shape[1] != width,
        "self-conditioning": channels == 2 * out_channels,
        f"an out_dim of {out_channels} for {channels} channels": out_channels not in (channels, 2 * channels),
        f"channels that are no multiple of the first level's {width}": any(m % 1 for m in multipliers),
        "attentions of different widths": inner != heads * head_width,
    }
    for option, used in unsupported.items():
        if used:
            raise UserError(f"{where}: it uses {option}, which ddpm does not have")
    return validate(
        LinearAttentionConfig,
        {
            "kind": "linear-attention",
            "width": width,
            "multipliers": [int(multiplier) for multiplier in multipliers],
            "heads": heads,
            "head_width": head_width,
            "memory": memory,
            "full_attention": [level for level in range(levels) if f"downs.{level}.2.to_out.weight" in theirs],
            "downsample": "unshuffle" if unshuffles else "conv",
            "vector": "concatenate" if concatenates else "add",
        },
        where,
    )


def _renamed(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Their tensors under our names."""
    names = {name: _their_name(name, ours, _WRAPPED in theirs) for name in ours}
    refuse_other_keys(theirs, names.values(), where)
    weights = {name: theirs[their_name] for name, their_name in names.items()}
    for name in weights:
        # In the linear attention their learned keys and values have the features first, as ours have everywhere.
        if name.endswith("memory") and not _is_linear(name, ours):
            weights[name] = weights[name].transpose(-1, -2)
    return weights


def _their_name(name: str, ours: Mapping[str, Tensor], wrapped: bool) -> str:
    attention = re.match(r"(.*attention)\.(.*)", name)
    if attention and wrapped:
        inner = "fn" if attention[2].startswith("norm.") else "fn.fn"
        name = f"{attention[1]}.{inner}.{attention[2]}"
    if attention and attention[2].startswith("out."):
        name = name.replace(".out.", ".to_out.0." if f"{attention[1]}.out_norm.gain" in ours else ".to_out.")
    for pattern, theirs in _RENAMED:
        name = re.sub(pattern, theirs, name)
    return name


def _is_linear(name: str, ours: Mapping[str, Tensor]) -> bool:
    return name.replace("memory", "out_norm.gain") in ours


def _process(diffusion: Mapping[str, Tensor], learned: bool, where: str) -> ProcessConfig:
    """The process that a diffusion's buffers are of."""
    betas = diffusion["betas"].double().numpy()
    process = process_of(betas, ("linear", "cosine", "sigmoid"), where, rtol=1e-4, atol=1e-7)
    alpha_bar = Schedule.of(process).alphas_cumprod
    snr = alpha_bar / (1 - alpha_bar)
    # Its losses are weighted so that each is the noise's error; where there is more signal than noise, perhaps less.
    weights = {"epsilon": np.ones_like(snr), "x0": snr, "v": snr / (snr + 1)}
    noisy = snr < 1
    for prediction, weight in weights.items():
        if np.allclose(diffusion["loss_weight"].double().numpy()[noisy], weight[noisy], rtol=1e-3, atol=1e-6):
            variance = "learned_range" if learned else "fixed_small"
            return validate(ProcessConfig, {**process, "prediction": prediction, "variance": variance}, where)
    raise UserError(f"{where}: its loss_weight is of no prediction that ddpm has")
