"""Pictures people look at: grids of samples and the strip from noise to image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SHOWN_SIDE = 32  # images smaller than this are enlarged by a whole factor
CAPTION_HEIGHT = 14


def grid(images: NDArray[np.uint8], columns: int, *, gap: int = 2) -> Image.Image:
    """Images [N, H, W, C] row by row on white, small ones enlarged without smoothing."""
    zoom = max(1, SHOWN_SIDE // images.shape[1])
    images = images.repeat(zoom, axis=1).repeat(zoom, axis=2)
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    canvas = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), 255, dtype=np.uint8)
    for index, image in enumerate(images):
        top = gap + index // columns * (height + gap)
        left = gap + index % columns * (width + gap)
        canvas[top : top + height, left : left + width] = image
    return as_picture(canvas)


def as_picture(image: NDArray[np.uint8]) -> Image.Image:
    """An image [H, W, 1] in grey, [H, W, 3] in colour."""
    return Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)


def beside(images: Sequence[Image.Image], *, gap: int = 12) -> Image.Image:
    """Pictures of one mode from left to right on white."""
    width = sum(image.width + gap for image in images) - gap
    canvas = Image.new(images[0].mode, (width, max(image.height for image in images)), "white")
    left = 0
    for image in images:
        canvas.paste(image, (left, 0))
        left += image.width + gap
    return canvas


def captioned(image: Image.Image, text: str) -> Image.Image:
    """The picture with a line of text under it."""
    canvas = Image.new(image.mode, (image.width, image.height + CAPTION_HEIGHT), "white")
    canvas.paste(image)
    ImageDraw.Draw(canvas).text((2, image.height + 1), text, fill="black")
    return canvas


def save_png(image: Image.Image, path: Path) -> None:
    """Write a PNG whose bytes depend on the pixels alone."""
    image.save(path, format="PNG", optimize=False)
