"""A folder of small pictures with captions, and a CLIP of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from tiny import LEVELS, TINY_PARAMS

# Trained in a second or two.
CLIP = {
    "network": {"kind": "clip", **LEVELS, "attention_resolutions": [4], "head_channels": 8, "embedding": 6},
    "condition": {"prompt": {"length": 4, "width": 16, "layers": 1, "heads": 2, "drop": 0}},
    "objective": {"loss": "contrastive"},
    "training": {**TINY_PARAMS["models"]["tiny"]["training"], "steps": 20, "learning_rate": 5e-3},
}


def write_pictures(directory: Path) -> None:
    """Sixteen pictures of 8×8, a light or a dark square, of which the dark ones have two captions."""
    directory.mkdir()
    for number in range(16):
        level, text = (230, "a light square") if number % 2 else (40, "a dark square\nnight")
        image = np.full((8, 8), level + number, np.uint8)
        image[2:6, 2:6] = 128
        Image.fromarray(image).save(directory / f"{number:02}.png")
        (directory / f"{number:02}.txt").write_text(text)
