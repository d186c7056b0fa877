"""Checkpoints of denoising_diffusion_pytorch (its Unet and Unet1D) as linear-attention U-Nets of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm.config import LinearAttentionConfig, ProcessConfig
from ddpm.diffusion.schedules import Schedule
from ddpm.errors import UserError
from ddpm.nets.linear_attention import LinearAttentionUNet

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
_DIFFUSION_BUFFERS = ("betas", "loss_weight")


@dataclass(frozen=True)
class Converted:
    """A network of ours with the weights of a checkpoint."""

    network: LinearAttentionConfig
    weights: dict[str, Tensor]
    dims: int
    """1: sequences, 2: images."""
    channels: int
    """Of the data."""
    process: ProcessConfig | None
    """What the checkpoint says of the process; None where it is of a network alone."""


def read(path: Path) -> dict[str, Any]:
    """A `.safetensors` or `.pt` file; of a pickle only tensors and plain values are loaded.

    Raises:
        UserError: the file is missing, damaged, or holds code.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except SafetensorError as error:
        raise UserError(f"{path}: damaged: {error}") from None
    except Exception as error:  # of pickle, of zipfile, or torch's own
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not a checkpoint of tensors alone ({reason})") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected a dictionary of tensors, found {type(found).__name__}")
    return found


def convert(state_dict: Mapping[str, Any], *, heads: int = 4, where: str = "checkpoint") -> Converted:
    """The network of a checkpoint, as ours.

    Args:
        state_dict: of a Unet or a Unet1D, of the GaussianDiffusion around it, or what its Trainer saves, of which the
            averaged weights are taken.
        heads: attention heads, where the weights do not tell (Unet1D).
        where: what errors call it.

    Raises:
        UserError: it is of another network, or of an option that ours lacks; missing and unexpected keys are named.
    """
    network, buffers = _parts(state_dict)
    try:
        config, dims, channels, out_channels = _described(network, heads)
    except KeyError as error:
        raise UserError(f"{where}: not a Unet or Unet1D of denoising_diffusion_pytorch: missing {error}") from None
    except _UnsupportedError as error:
        raise UserError(f"{where}: {error}") from None
    with torch.device("meta"):
        side = 2 ** len(config.multipliers)
        options = config.model_dump(exclude={"kind"})
        ours = LinearAttentionUNet(side, channels, out_channels=out_channels, dims=dims, **options).state_dict()
    weights = _renamed(network, ours, dims, where)
    process = _process(buffers, out_channels == 2 * channels, where) if buffers else None
    return Converted(config, weights, dims, channels, process)


class _UnsupportedError(Exception):
    pass


def _parts(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The network's tensors, and those that tell of the process, out of whatever was saved around them."""
    if isinstance(state.get("ema"), Mapping):
        state = {key.removeprefix("ema_model."): value for key, value in state["ema"].items() if "ema_model." in key}
    elif isinstance(state.get("model"), Mapping):
        state = state["model"]
    buffers = {key: state[key] for key in _DIFFUSION_BUFFERS if key in state}
    if not buffers:
        return dict(state), buffers
    network = {key.removeprefix("model."): value for key, value in state.items() if key.startswith("model.")}
    return network, buffers


def _described(theirs: Mapping[str, Tensor], heads: int) -> tuple[LinearAttentionConfig, int, int, int]:
    """The configuration, the number of axes, and the channels in and out, as the shapes tell them."""
    stem, middle = theirs["init_conv.weight"], theirs["final_conv.weight"]
    width, channels, out_channels, dims = stem.shape[0], stem.shape[1], middle.shape[0], stem.ndim - 2
    if dims not in (1, 2):
        raise _UnsupportedError(f"init_conv.weight is {list(stem.shape)}, neither of images nor of sequences")
    if "time_mlp.0.weights" in theirs:
        raise _UnsupportedError("random or learned Fourier features of the time are not supported")
    if theirs["time_mlp.1.weight"].shape[1] != width:
        raise _UnsupportedError("an init_dim other than dim is not supported")
    if channels == 2 * out_channels:
        raise _UnsupportedError("self-conditioning is not supported")
    levels = len({key.split(".")[1] for key in theirs if key.startswith("downs.")})
    unshuffles = "downs.0.3.1.weight" in theirs
    resamples = [f"downs.{level}.3{'.1' * (unshuffles and level < levels - 1)}.weight" for level in range(levels)]
    multipliers = [theirs[name].shape[0] / width for name in resamples]
    if any(multiplier % 1 for multiplier in multipliers):
        raise _UnsupportedError(f"a level's channels are no multiple of the first one's {width}")
    memory = theirs.get("mid_attn.mem_kv")
    qkv = theirs["mid_attn.to_qkv.weight" if dims == 2 else "mid_attn.fn.fn.to_qkv.weight"]
    heads = heads if memory is None else memory.shape[1]
    if qkv.shape[0] % (3 * heads):
        raise _UnsupportedError(f"{qkv.shape[0] // 3} channels of attention are no multiple of {heads} heads")
    config = LinearAttentionConfig(
        kind="linear-attention",
        width=width,
        multipliers=tuple(int(multiplier) for multiplier in multipliers),
        heads=heads,
        head_width=qkv.shape[0] // (3 * heads),
        memory=0 if memory is None else memory.shape[2],
        full_attention=tuple(level for level in range(levels) if f"downs.{level}.2.to_out.weight" in theirs),
        downsample="unshuffle" if unshuffles else "conv",
    )
    return config, dims, channels, out_channels


def _renamed(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor], dims: int, where: str) -> dict[str, Tensor]:
    """Their tensors under our names, in our shapes."""
    names = {name: _their_name(name, ours, dims) for name in ours}
    missing, unexpected = sorted(set(names.values()) - set(theirs)), sorted(set(theirs) - set(names.values()))
    if missing or unexpected:
        raise UserError(f"{where}: another network: missing {missing[:3]}, unexpected {unexpected[:3]}")
    weights = {}
    for name, expected in ours.items():
        tensor = theirs[names[name]]
        if name.endswith("memory") and not _is_linear(name, ours):
            tensor = tensor.transpose(-1, -2)
        if name.endswith("gain"):
            tensor = tensor.flatten()
        if tensor.shape != expected.shape:
            found, wanted = list(tensor.shape), list(expected.shape)
            raise UserError(f"{where}: another network: {names[name]} is {found}, expected {wanted}")
        weights[name] = tensor.to(torch.float32).contiguous()
    return weights


def _their_name(name: str, ours: Mapping[str, Tensor], dims: int) -> str:
    attention = re.match(r"(.*attention)\.(.*)", name)
    if attention and dims == 1:  # the attention is wrapped in a norm, and that in a residual sum
        inner = "fn" if attention[2].startswith("norm.") else "fn.fn"
        name = f"{attention[1]}.{inner}.{attention[2]}"
    if attention and attention[2].startswith("out."):
        name = name.replace(".out.", ".to_out.0." if f"{attention[1]}.out_norm.gain" in ours else ".to_out.")
    for pattern, theirs in _RENAMED:
        name = re.sub(pattern, theirs, name)
    return name


def _is_linear(name: str, ours: Mapping[str, Tensor]) -> bool:
    return name.replace("memory", "out_norm.gain") in ours


def _process(buffers: Mapping[str, Tensor], learned: bool, where: str) -> ProcessConfig:
    """The process that a diffusion's buffers are of."""

    betas = buffers["betas"].double().numpy()
    for schedule in ("linear", "cosine", "sigmoid"):
        named = Schedule.named(schedule, len(betas))
        if np.allclose(betas, named.betas, rtol=1e-4, atol=1e-7):
            break
    else:
        raise UserError(f"{where}: its betas are of another schedule than linear, cosine and sigmoid")
    snr = named.alphas_cumprod / (1 - named.alphas_cumprod)
    # Its losses are weighted so that each is the noise's error; where there is more signal than noise, perhaps less.
    weights = {"epsilon": np.ones_like(snr), "x0": snr, "v": snr / (snr + 1)}
    noisy = snr < 1
    for prediction, weight in weights.items():
        if np.allclose(buffers["loss_weight"].double().numpy()[noisy], weight[noisy], rtol=1e-3, atol=1e-6):
            return ProcessConfig.model_validate(
                {
                    "timesteps": len(betas),
                    "schedule": schedule,
                    "prediction": prediction,
                    "variance": "learned_range" if learned else "fixed_small",
                }
            )
    raise UserError(f"{where}: its loss_weight is of no prediction that ddpm has")
