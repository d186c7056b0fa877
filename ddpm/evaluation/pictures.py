"""Pictures people look at: grids of samples, their captions, and what a picture's file says of its origin."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from ddpm.diffusion.plans import decisive_choices
from ddpm.version import __version__

WIDTH = 600  # pixels that a picture in a file has at least
SHOWN_SIDE = 32  # images smaller than this are enlarged by a whole factor
CAPTION_HEIGHT = 14
LONGEST_NAME = 20  # characters of a row's name that are shown
_GREYS, _COLOURS = 32, 128  # of an animation


def grid(
    images: NDArray[np.uint8],
    columns: int,
    *,
    gap: int = 2,
    width: int = 0,
    captions: Sequence[str] = (),
    names: Sequence[str] = (),
    longest_name: int = LONGEST_NAME,
) -> Image.Image:
    """Images [N, H, W, C] row by row on white, small ones enlarged by a whole factor without smoothing.

    Args:
        width: pixels that the grid gets at least.
        captions: a text above each column.
        names: a text at the left of each row.
        longest_name: characters of it that are shown.
    """
    zoom = max(1, SHOWN_SIDE // images.shape[1], -(-(width - gap * (columns + 1)) // (columns * images.shape[2])))
    images = images.repeat(zoom, axis=1).repeat(zoom, axis=2)
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    canvas = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), 255, dtype=np.uint8)
    for index, image in enumerate(images):
        top = gap + index // columns * (height + gap)
        left = gap + index % columns * (width + gap)
        canvas[top : top + height, left : left + width] = image
    picture = as_picture(canvas)
    if captions:
        picture = _under_captions(picture, captions, gap, width + gap)
    top = gap + (CAPTION_HEIGHT if captions else 0)
    return _beside_names(picture, names, top, height + gap, longest_name) if names else picture


def as_picture(image: NDArray[np.uint8]) -> Image.Image:
    """An image [H, W, 1] in grey, [H, W, 3] in colour."""
    return Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)


def enlarged(image: Image.Image, width: int = WIDTH) -> Image.Image:
    """The picture enlarged by a whole factor, without smoothing, to at least this width."""
    zoom = -(-width // image.width)
    return image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)


def beside(images: Sequence[Image.Image], *, gap: int = 12) -> Image.Image:
    """Pictures of one mode from left to right on white."""
    width = sum(image.width + gap for image in images) - gap
    canvas = Image.new(images[0].mode, (width, max(image.height for image in images)), "white")
    left = 0
    for image in images:
        canvas.paste(image, (left, 0))
        left += image.width + gap
    return canvas


def in_turn(images: Sequence[NDArray[np.uint8]], columns: int = 4) -> Image.Image:
    """A grid in which what several models draw of the same data stands side by side.

    Args:
        images: of each model [N, h, w, C]; all are shown in the size of the last one.
        columns: data in a row.
    """
    *_, last = images
    factors = [last.shape[1] // each.shape[1] for each in images]
    alike = [each.repeat(factor, axis=1).repeat(factor, axis=2) for each, factor in zip(images, factors, strict=True)]
    return grid(np.stack(alike, 1).reshape(-1, *last.shape[1:]), len(images) * columns, width=WIDTH)


def _under_captions(image: Image.Image, captions: Sequence[str], left: int, step: int) -> Image.Image:
    """The picture with a text above each of its columns, which begin at `left` and lie `step` apart."""
    canvas = Image.new(image.mode, (image.width, image.height + CAPTION_HEIGHT), "white")
    canvas.paste(image, (0, CAPTION_HEIGHT))
    for column, text in enumerate(captions):
        ImageDraw.Draw(canvas).text((left + column * step, 1), text, fill="black")
    return canvas


def _beside_names(image: Image.Image, names: Sequence[str], top: int, step: int, longest: int) -> Image.Image:
    """The picture with a text at the left of each of its rows, which begin at `top` and lie `step` apart."""
    shown = [name if len(name) <= longest else f"{name[: longest - 1]}…" for name in names]
    measured = ImageDraw.Draw(image)
    room = math.ceil(max(measured.textlength(name) for name in shown)) + 6
    canvas = Image.new(image.mode, (image.width + room, image.height), "white")
    canvas.paste(image, (room, 0))
    for row, name in enumerate(shown):
        ImageDraw.Draw(canvas).text((2, top + row * step + (step - CAPTION_HEIGHT) // 2), name, fill="black")
    return canvas


def captioned(image: Image.Image, text: str) -> Image.Image:
    """The picture with a line of text under it."""
    canvas = Image.new(image.mode, (image.width, image.height + CAPTION_HEIGHT), "white")
    canvas.paste(image)
    ImageDraw.Draw(canvas).text((2, image.height + 1), text, fill="black")
    return canvas


def origin(
    *,
    model: str,
    training: str | None,
    seed: int,
    sampling: Mapping[str, Any],
    variance: str,
    protocol: str | None = None,
    attribution: str | None = None,
    other_plans: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, str]:
    """What a picture came of, in words; nothing in it differs between two equal runs.

    Args:
        model: its variant.
        training: the start of its fingerprint, if that is known.
        sampling: the plan, as the section `sampling` of params.yaml.
        variance: of the model's process.
        protocol: the id of the evaluation's.
        attribution: the credit for the training images.
        other_plans: as of `Drawer.other_plans`.
    """
    plan = decisive_choices({"variance": None, "dynamic_threshold": None, **sampling}, variance=variance)
    facts = {
        "Software": f"ddpm {__version__}",
        "Model": model,
        "Training": training,
        "Seed": str(seed),
        "Plan": _in_a_line(plan),
        **{f"{name.capitalize()} plan": _in_a_line(own) for name, own in (other_plans or {}).items()},
        "Protocol": protocol,
        **credit(attribution),
    }
    return {name: text for name, text in facts.items() if text}


def _in_a_line(plan: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in plan.items() if value is not None)


def credit(attribution: str | None) -> dict[str, str]:
    """What a picture's file says of the training images; nothing, where they ask for no credit."""
    return {} if attribution is None else {"Attribution": attribution}


def save_png(
    image: Image.Image, out: Path | IO[bytes], facts: Mapping[str, str] | None = None, *, optimize: bool = False
) -> None:
    """Write a PNG whose bytes depend on the pixels and the facts alone; the facts become its text fields."""
    text = PngInfo()
    for name, value in (facts or {}).items():
        text.add_text(name, value)
    image.save(out, format="PNG", optimize=optimize, pnginfo=text)


def png(image: Image.Image, facts: Mapping[str, str] | None = None, *, optimize: bool = False) -> bytes:
    """`save_png` into memory."""
    stream = io.BytesIO()
    save_png(image, stream, facts, optimize=optimize)
    return stream.getvalue()


def as_gif(frames: Sequence[Image.Image], facts: Mapping[str, str], *, frame: int = 80, pause: int = 2000) -> bytes:
    """An animation that repeats for ever, with the facts as its comment.

    Args:
        frame: milliseconds that each picture is seen.
        pause: milliseconds that the last one is.
    """
    stream = io.BytesIO()
    # Fewer colours than a GIF can hold, and no dithering: noise compresses badly.
    first, *others = (
        image.quantize(_GREYS if image.mode == "L" else _COLOURS, dither=Image.Dither.NONE) for image in frames
    )
    first.save(
        stream,
        format="GIF",
        save_all=True,
        append_images=others,
        duration=[*[frame] * (len(frames) - 1), pause],
        loop=0,
        comment="; ".join(f"{name}: {value}" for name, value in facts.items()).encode("ascii", "replace"),
    )
    return stream.getvalue()
