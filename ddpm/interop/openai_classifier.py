"""State dicts of openai/guided-diffusion's classifiers of noisy images: the U-Net's way down, and attention pooling."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from ddpm.codecs.scale import PixelCodec
from ddpm.config.base import validate
from ddpm.config.network import ClassifierConfig
from ddpm.config.process import ProcessConfig
from ddpm.config.sampling import SamplingConfig
from ddpm.errors import UserError
from ddpm.interop.openai import (
    ENDS,
    GROUPS,
    TELLING,
    arranged,
    asked,
    input_blocks,
    levels_of,
    names_down,
    renamed,
)
from ddpm.interop.published import Flags, Published, network_of, refuse_other_keys, shaped_like

HEAD_CHANNELS = 64  # of every classifier that their command line makes
_USED = {"image_size", "noise_schedule", "diffusion_steps", "num_head_channels", "use_new_attention_order"}
_POOL = {"pool.qkv": "out.2.qkv_proj", "pool.out": "out.2.c_proj"}
_POSITION = "out.2.positional_embedding"
_LOGITS = "out.2.c_proj.weight"


def is_theirs(found: Mapping[str, Tensor]) -> bool:
    """Whether it is of a classifier: a U-Net without a way up."""
    blocks = {name.partition(".")[0] for name in found if isinstance(name, str)}
    return {"input_blocks", "middle_block"} <= blocks and "output_blocks" not in blocks


def convert(theirs: Mapping[str, Tensor], flags: Flags, where: str = "checkpoint") -> Published:
    """The classifier of a state dict.

    Args:
        theirs: the tensors by their names.
        where: what errors call it.

    Raises:
        UserError: it is of another network, a flag that its shapes do not replace was not given, or one does not fit.
    """
    flags.refuse_but(_USED, f"{where}: a classifier")
    if _POSITION not in theirs:
        raise UserError(
            f"{where}: a classifier without attention pooling ({_POSITION} is missing); ddpm imports those of "
            "--classifier_pool attention"
        )
    telling = TELLING | {_POSITION, _LOGITS}
    refuse_other_keys(theirs.keys() & telling, telling, where)
    image_size, schedule, timesteps = asked(flags, [], where)
    width, channels = theirs["time_embed.0.weight"].shape[1], theirs["input_blocks.0.0.weight"].shape[1]
    if channels not in (1, 3):
        raise UserError(f"{where}: {channels} channels in: not a classifier of grey or RGB images")
    resample, blocks, levels = _layout(theirs, image_size, where)
    widths, attended = levels_of(theirs, blocks, levels, where)
    head_channels = flags.num_head_channels or HEAD_CHANNELS
    network = validate(
        ClassifierConfig,
        {
            "kind": "classifier",
            "width": width,
            "multipliers": [c / width for c in widths],
            "blocks": blocks,
            "attention_resolutions": [image_size // 2**level for level in attended],
            "head_channels": head_channels,
            "groups": GROUPS,
            "scale_shift": len(theirs["input_blocks.1.0.emb_layers.1.bias"]) == 2 * widths[0],
            "resample": resample,
            "frequency_shift": 0,
        },
        where,
    )
    codec, classes = PixelCodec((image_size, image_size, channels)), len(theirs[_LOGITS])
    ours = network_of(network, codec.network_shape, classes, where)
    modules = ENDS | _POOL | dict(names_down(network))
    weights = arranged(
        theirs,
        {name: _POSITION if name == "pool.position" else renamed(name, modules) for name in ours.state_dict()},
        where,
        heads=1,
        head_channels=head_channels,
        new_order=flags.use_new_attention_order,
    )
    process = ProcessConfig(timesteps=timesteps, schedule=schedule)
    sampling = SamplingConfig(steps=timesteps)  # of no use: it draws nothing
    return Published(network, process, sampling, codec, shaped_like(weights, ours, where), answers=classes)


def _layout(
    theirs: Mapping[str, Tensor], image_size: int, where: str
) -> tuple[Literal["conv", "plain", "residual"], int, int]:
    """How it resamples, its blocks a level, and its levels, which its pooling tells: it has a position for each pixel
    of the last, and one for their mean.

    Raises:
        UserError: the images are of another size.
    """
    positions = theirs[_POSITION].shape[1] - 1
    side = math.isqrt(max(positions, 0))
    if side < 1 or side**2 != positions:
        raise UserError(f"{where}: another network: {_POSITION} is of {positions} pixels, which are no square")
    levels = max(image_size // side, 1).bit_length()
    numbers = input_blocks(theirs, where)
    last = max(numbers)
    blocks = (last + 1) // levels - 1

    def having(part: str) -> set[int]:
        return {number for number in numbers if f"input_blocks.{number}.{part}.weight" in theirs}

    # The numbers that begin a level, and those that lead to the next.
    firsts = {1 + level * (blocks + 1) for level in range(levels)}
    ends = {(level + 1) * (blocks + 1) for level in range(levels - 1)}
    convolutions, gaps = having("0.op"), set(range(last)) - numbers
    found = convolutions or gaps or ends - having("1.qkv")
    whole = last + 1 == levels * (blocks + 1) and blocks > 0 and image_size == side * 2 ** (levels - 1)
    if not whole or found != ends or not having("0.skip_connection") <= firsts:
        raise UserError(
            f"{where}: --image-size is {image_size}, which does not fit: the weights have {last + 1} blocks on the way "
            f"down, to {side}×{side} pixels"
        )
    return "conv" if convolutions else "plain" if gaps else "residual", blocks, levels
