"""State dicts of openai/improved-diffusion and openai/guided-diffusion.

They are of one U-Net, whose modules are numbered through. What its shapes do not tell has to be said; the options bear
the names of the original command lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Literal

import torch
from torch import Tensor

from ddpm.codecs.scale import PixelCodec
from ddpm.config.base import validate
from ddpm.config.network import ClassifierConfig, NetworkConfig
from ddpm.config.process import ProcessConfig
from ddpm.config.sampling import SamplingConfig
from ddpm.errors import UserError
from ddpm.interop.published import (
    Flags,
    Published,
    classes_of,
    network_of,
    parts_of,
    refuse_other_keys,
    shaped_like,
    swap_halves,
    transformer_parts,
)

GROUPS = 32
_RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "skip": "skip_connection",
}
_ATTENTION = {"norm": "norm", "qkv": "qkv", "out": "proj_out"}
# The modules of any such network, whatever its size; a classifier has those up to the norm.
ENDS = {
    "time_mlp.0": "time_embed.0",
    "time_mlp.2": "time_embed.2",
    "stem": "input_blocks.0.0",
    "out_norm": "out.0",
}
# Those whose shapes tell the network's; a classifier has all but the last.
TELLING = {
    "time_embed.0.weight",
    "input_blocks.0.0.weight",
    "input_blocks.1.0.emb_layers.1.bias",
    "input_blocks.1.0.out_layers.3.weight",
}
_OUT = "out.2.bias"
_CLASSES = "label_emb.weight"
_PREFIXES = ("time_embed.", "input_blocks.", "middle_block.", "output_blocks.", "out.")


def convert(theirs: Mapping[str, Tensor], flags: Flags, where: str = "checkpoint") -> Published:
    """The network of a state dict.

    Args:
        theirs: the tensors by their names.
        where: what errors call it.

    Raises:
        UserError: it is of another network, or a flag that its shapes do not replace was not given.
    """
    _fits(flags, where)
    labels = {"embedding.weight": theirs[_CLASSES]} if _CLASSES in theirs else None
    theirs = {name: tensor for name, tensor in theirs.items() if name != _CLASSES}
    strangers = {name for name in theirs if not name.startswith(_PREFIXES)}
    telling = TELLING | {_OUT}
    refuse_other_keys(strangers | (theirs.keys() & telling), telling, where)
    image_size, schedule, timesteps = asked(flags, _also_asked(theirs, flags), where)
    width, channels = theirs["time_embed.0.weight"].shape[1], theirs["input_blocks.0.0.weight"].shape[1]
    out_channels = len(theirs[_OUT])
    if channels not in (1, 3) or out_channels not in (channels, 2 * channels):
        raise UserError(f"{where}: {channels} channels in and {out_channels} out: not a denoiser of grey or RGB images")
    resample, blocks, levels = layout_of(theirs, where)
    widths, attended = levels_of(theirs, blocks, levels, where)
    if any(c % width for c in widths) or theirs["input_blocks.0.0.weight"].shape[0] != width:
        raise UserError(f"{where}: channels {widths} are not all multiples of the first width, {width}")
    multipliers = tuple(c // width for c in widths)
    network = validate(
        NetworkConfig,
        {
            "width": width,
            "multipliers": multipliers,
            "blocks": blocks,
            "attention_resolutions": [image_size // 2**level for level in attended],
            "heads": 1 if flags.num_head_channels else flags.num_heads or 1,
            "head_channels": flags.num_head_channels,
            "groups": GROUPS,
            "dropout": flags.dropout,
            "scale_shift": len(theirs["input_blocks.1.0.emb_layers.1.bias"]) == 2 * width * multipliers[0],
            "resample": resample,
            "frequency_shift": 0,
            "timestep_scale": 1000 / timesteps if flags.rescale_timesteps else 1.0,
        },
        where,
    )
    learned = out_channels == 2 * channels
    process = ProcessConfig(
        timesteps=timesteps,
        schedule=schedule,
        prediction="x0" if flags.predict_xstart else "epsilon",
        variance="learned_range" if learned else "fixed_small" if flags.sigma_small else "fixed_large",
    )
    codec = PixelCodec((image_size, image_size, channels))
    ours = network_of(network, codec.network_shape, out_channels, where)
    modules = dict(module_names(network, image_size))
    weights = arranged(
        theirs,
        {name: renamed(name, modules) for name in ours.state_dict()},
        where,
        heads=network.heads,
        head_channels=network.head_channels,
        new_order=flags.use_new_attention_order,
    )
    sampling = SamplingConfig(sampler="ancestral", steps=timesteps, spacing="linspace")
    classes = classes_of(labels, ours, where, name=_CLASSES, null=flags.null_class)
    return Published(network, process, sampling, codec, shaped_like(weights, ours, where), labels=classes)


def _fits(flags: Flags, where: str) -> None:
    """
    Raises:
        UserError: a flag is of another project, or says what our network lacks.
    """
    others = {"seq_length", "auto_normalize"}
    flags.refuse_but({field.name for field in fields(flags)} - others, f"{where}: OpenAI's network")
    upsample = flags.num_heads_upsample
    # A width of the heads says their number everywhere.
    if upsample not in (None, -1, flags.num_heads) and not flags.num_head_channels:
        raise UserError(
            f"{where}: --num-heads-upsample is {upsample} and --num-heads {flags.num_heads}, but ddpm's network has as "
            "many on both ways: it cannot be imported"
        )


def arranged(
    theirs: Mapping[str, Tensor],
    names: Mapping[str, str],
    where: str,
    *,
    heads: int,
    head_channels: int | None,
    new_order: bool,
) -> dict[str, Tensor]:
    """Their weights under our names, with rows and columns in our order.

    Args:
        names: theirs of each of ours.
        heads: of an attention.
        head_channels: instead of `heads`: channels of a head.
        new_order: whether the rows of the attentions are queries, keys and values, as ours, and not heads.

    Raises:
        UserError: the names are others.
    """
    refuse_other_keys(theirs, names.values(), where)
    weights = {name: theirs[their_name] for name, their_name in names.items()}
    # Cosines come first in their timestep embedding.
    weights["time_mlp.0.weight"] = swap_halves(weights["time_mlp.0.weight"])
    for name in weights:
        # A classifier's pooling is in the new order always.
        if "attention" in name and ".qkv." in name and not new_order:
            weights[name] = _regrouped(weights[name], heads, head_channels)
    return weights


def module_names(network: NetworkConfig, image_size: int) -> Iterator[tuple[str, str]]:
    """Our name and theirs of every module that may hold weights."""
    yield from ENDS.items()
    yield "out_conv", "out.2"
    yield from names_down(network)
    attention = _attention_parts(network)
    last = len(network.multipliers) - 1
    for number in range((last + 1) * (network.blocks + 1)):
        level, block = divmod(number, network.blocks + 1)
        yield from parts_of(f"up.{level}.residuals.{block}", f"output_blocks.{number}.0", _RESIDUAL)
        yield from parts_of(f"up.{level}.attentions.{block}", f"output_blocks.{number}.1", attention)
        if block == network.blocks and level < last:
            resample = _RESIDUAL if network.resample == "residual" else {"conv": "conv"}
            place = 2 if image_size // 2 ** (last - level) in network.attention_resolutions else 1
            yield from parts_of(f"up.{level}.resample", f"output_blocks.{number}.{place}", resample)


def names_down(network: NetworkConfig | ClassifierConfig) -> Iterator[tuple[str, str]]:
    """Our name and theirs of every module on the way down and at the bottom."""
    attention, last = _attention_parts(network), len(network.multipliers) - 1
    number = 0
    for level in range(last + 1):
        for block in range(network.blocks):
            number += 1
            yield from parts_of(f"down.{level}.residuals.{block}", f"input_blocks.{number}.0", _RESIDUAL)
            yield from parts_of(f"down.{level}.attentions.{block}", f"input_blocks.{number}.1", attention)
        if level < last:
            number += 1
            resample = _RESIDUAL if network.resample == "residual" else {"conv": "op"}
            yield from parts_of(f"down.{level}.resample", f"input_blocks.{number}.0", resample)
    yield from parts_of("middle_in", "middle_block.0", _RESIDUAL)
    yield from parts_of("middle_attention", "middle_block.1", attention)
    yield from parts_of("middle_out", "middle_block.2", _RESIDUAL)


def _attention_parts(network: NetworkConfig | ClassifierConfig) -> Mapping[str, str]:
    depth = getattr(network, "transformer_depth", 0) if getattr(network, "attention", "plain") == "transformer" else 0
    return transformer_parts(depth) if depth else _ATTENTION


def renamed(name: str, modules: Mapping[str, str]) -> str:
    """Their name of a tensor of ours."""
    module, _, parameter = name.rpartition(".")
    return f"{modules[module]}.{parameter}"


def _also_asked(theirs: Mapping[str, Tensor], flags: Flags) -> Iterator[str]:
    """What a U-Net's weights do not tell either and is not given."""
    attends = any(name.endswith("qkv.weight") for name in theirs)
    if attends and not flags.num_heads and not flags.num_head_channels:
        yield "--num-heads or --num-head-channels"
    if flags.diffusion_steps not in (None, 1000) and flags.rescale_timesteps is None:
        # The two projects' defaults differ, and only here does it matter.
        yield "--rescale-timesteps (improved-diffusion's default) or --no-rescale-timesteps (guided-diffusion's)"


def asked(flags: Flags, others: Iterable[str], where: str) -> tuple[int, Literal["linear", "cosine"], int]:
    """Image size, schedule and timesteps.

    Args:
        others: the options that are missing beside these.

    Raises:
        UserError: something was not given; all of it is asked for at once.
    """
    size, schedule, steps = flags.image_size, flags.noise_schedule, flags.diffusion_steps
    given = {"--image-size": size, "--noise-schedule": schedule, "--diffusion-steps": steps}
    wanted = [name for name, value in given.items() if value is None]
    wanted += others
    if wanted:
        raise UserError(f"{where}: weights do not tell everything: give, as when it was trained, {', '.join(wanted)}")
    assert size is not None
    assert schedule is not None
    assert steps is not None
    return size, schedule, steps


def input_blocks(theirs: Mapping[str, Tensor], where: str) -> set[int]:
    """The numbers of the blocks on the way down.

    Raises:
        UserError: one is much higher than there are tensors.
    """
    numbers = {int(name.split(".")[1]) for name in theirs if name.startswith("input_blocks.")}
    if max(numbers) > 2 * len(theirs):  # a gap of one is a level's end
        raise UserError(f"{where}: another network: it has a block number {max(numbers):.3g} in {len(theirs)} tensors")
    return numbers


def layout_of(theirs: Mapping[str, Tensor], where: str) -> tuple[Literal["conv", "plain", "residual"], int, int]:
    """How it resamples, its blocks a level, and its levels.

    A level on the way down is `blocks` numbers and one for what leads to the next; plain pooling leaves its number out.
    """
    numbers = input_blocks(theirs, where)
    count = max(numbers)
    convolutions = [number for number in numbers if f"input_blocks.{number}.0.op.weight" in theirs]
    gaps = sorted(set(range(1, count)) - numbers)
    outputs = {int(name.split(".")[1]) for name in theirs if name.startswith("output_blocks.")}
    ups = [
        number
        for number in outputs
        if any(f"output_blocks.{number}.{place}.in_layers.0.weight" in theirs for place in (1, 2))
    ]
    if convolutions:
        return "conv", min(convolutions) - 1, len(convolutions) + 1
    if gaps:
        return "plain", gaps[0] - 1, len(gaps) + 1
    if ups:
        return "residual", min(ups), len(ups) + 1
    return "conv", count, 1


def levels_of(
    theirs: Mapping[str, Tensor], blocks: int, levels: int, where: str
) -> tuple[Sequence[int], Sequence[int]]:
    """The channels of each level, and which of them attend.

    Raises:
        UserError: there are not as many levels.
    """
    firsts = [f"input_blocks.{1 + level * (blocks + 1)}" for level in range(levels)]
    widths = {f"{first}.0.out_layers.3.weight" for first in firsts}
    refuse_other_keys(theirs.keys() & widths, widths, where)
    channels = [len(theirs[f"{first}.0.out_layers.3.weight"]) for first in firsts]
    return channels, [level for level, first in enumerate(firsts) if f"{first}.1.norm.weight" in theirs]


def _regrouped(qkv: Tensor, heads: int, head_channels: int | None) -> Tensor:
    """Rows as heads of (q, k, v) → rows as (q, k, v) of heads."""
    heads = len(qkv) // (3 * head_channels) if head_channels else heads
    if len(qkv) % (3 * heads):
        return qkv  # the network itself says that the heads do not fit
    return torch.cat(list(qkv.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(1, 2)))
