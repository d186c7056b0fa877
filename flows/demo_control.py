"""`make demo-control`: a model of emoji, a control of it that follows edges, and a picture of what it draws of hints.

The project is `.demo-control/`, made as that of `make demo-text`.
"""

from __future__ import annotations

import os
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import ddpm
from ddpm.config.params import load_params
from ddpm.data.store import PreparedData
from ddpm.evaluation.agreement import hint_column
from ddpm.evaluation.image_to_image import like_validation
from ddpm.evaluation.pictures import WIDTH, captioned, grid, save_png
from ddpm.files import atomic_file
from ddpm.layout import MODELS, PREPARED
from ddpm.model import Model
from ddpm.stages.sample import origin_of
from flows import retrain
from flows.demo_text import DEMO as DEMO_TEXT
from flows.demo_text import LETTER, make_project

FOLDER, PICTURE, HINT = Path(".demo-control"), Path("controlled.png"), Path("edges.png")
CONTROL, BASE = "control-emoji", "emoji"

# What the demo's params.yaml has in place of this repository's.
DEMO: dict[str, Any] = {**DEMO_TEXT, "variants": [BASE], "cascades": {}, "controls": {CONTROL: {"of": BASE}}}

SHOWN, SAMPLES = 16, 3  # hints, and images of each
ACROSS = 2  # hints beside each other


def hints_picture(
    model: Model, data: PreparedData, *, shown: int = SHOWN, samples: int = SAMPLES, seed: int = 0
) -> Image.Image:
    """Hints of validation images; of each what is drawn of it, and what the base draws of the same noise."""
    hint = hint_column(model.columns)
    assert hint is not None
    asked = like_validation(model.columns, data, np.arange(shown) * (len(data.split("validation")) // shown))
    each: dict[str, Any] = {name: np.repeat(values, samples, axis=0) for name, values in asked.items()}
    drawn = model.sample(shown * samples, seed=seed, **each).reshape(shown, samples, *model.codec.shape)
    base = model.sample(shown * samples, seed=seed, **each, control_scale=0.0).reshape(drawn.shape)[:, :1]
    cells = np.concatenate([hint.as_picture(asked[hint.name], drawn.shape[-1])[:, None], drawn, base], axis=1)
    heads = ["hint", "with the control", *[""] * (samples - 1), "without"]
    flat = cells.reshape(-1, *model.codec.shape)
    picture = grid(flat, ACROSS * cells.shape[1], captions=heads * ACROSS, width=WIDTH)
    for line in textwrap.wrap(model.attribution or "", picture.width // LETTER):
        picture = captioned(picture, line)
    return picture


def main() -> int:
    project = make_project(Path.cwd(), DEMO, FOLDER)
    os.chdir(project)
    if code := retrain.main([]):
        return code
    model = ddpm.load(MODELS / CONTROL)
    assert isinstance(model, Model)
    data = PreparedData.open(PREPARED)
    with atomic_file(PICTURE) as temporary:
        save_png(hints_picture(model, data, seed=load_params().seed), temporary, origin_of(model, 0, {}), optimize=True)
    save_hint(model, data, HINT)
    print(
        f"\n{project / PICTURE}: {SHOWN} hints, {SAMPLES} images of each, and one without the control. Others:\n"
        f"    cd {project.name}\n"
        f"    ddpm sample models:/ddpm-emoji@champion --control {HINT} --n 8 --out drawn.png\n"
        "    ddpm serve models:/ddpm-emoji@champion      # its page has a canvas to draw edges on"
    )
    return 0


def save_hint(model: Model, data: PreparedData, path: Path) -> None:
    """The hint of the first validation image as a file."""
    hint = hint_column(model.columns)
    assert hint is not None
    asked = like_validation(model.columns, data, np.arange(1))[hint.name]
    with atomic_file(path) as temporary:
        Image.fromarray(hint.as_picture(asked, 1)[0, ..., 0]).save(temporary, "PNG")


if __name__ == "__main__":
    sys.exit(main())
