"""`make demo-text`: the pipeline on emoji and their names, in a project of its own, and a picture of prompts.

The project is `.demo-text/`: the code and dvc.yaml are this repository's, by symbolic links; params.yaml is this
repository's with the data and the models of the demo; data, models and the MLflow store are its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

import ddpm
from ddpm.conditioning.columns import PromptColumn
from ddpm.config.params import PARAMS_FILE
from ddpm.drawer import Drawer
from ddpm.evaluation.pictures import captioned, grid, save_png
from ddpm.files import atomic_file, write_bytes
from ddpm.stages.sample import origin_of
from flows import retrain

FOLDER, PICTURE = Path(".demo-text"), Path("prompts.png")
CASCADE = "glide"
LINKED = ("ddpm", "flows", "dvc.yaml")

# What the demo's params.yaml has in place of this repository's.
DEMO: dict[str, Any] = {
    "data": {"source": "emoji"},
    "extractor": {"steps": 200},
    "evaluation": {"samples": 1000},
    "variants": [],
    "guides": [],
    "autoencoders": [],
    "encoders": [],
    "latents": {},
    "unclips": {},
    "controls": {},
    "cascades": {CASCADE: {"base": "text-8", "upsampler": "text-32", "low_noise": 0.1}},
}

SCALES = (1.0, 2.0, 4.0)
COLUMNS = 3  # pictures a prompt and a scale
LETTER = 7  # pixels that a letter of a note takes at most, nearly all of them
PROMPTS = (
    *("red heart", "blue heart", "green heart", "yellow heart"),
    *("red circle", "blue circle", "purple circle", "red square"),
    *("grinning face", "grinning cat", "crying face", "panda"),
    *("flag of france", "flag of japan", "flag of germany", "flag of brazil"),
    *("waving hand medium light skin tone", "waving hand dark skin tone", "raised fist medium light skin tone"),
    *("raised fist dark skin tone", "prince medium skin tone", "woman student medium light skin tone"),
    *("rocket", "green apple"),
)


def make_project(root: Path, demo: Mapping[str, Any] = DEMO, folder: Path = FOLDER) -> Path:
    """The demo's project in a repository, ready for the pipeline; what it has made before stays.

    Args:
        root: the repository.
        demo: sections of params.yaml that take the place of the repository's.
        folder: of the project, in the repository.
    """
    project = root / folder
    project.mkdir(exist_ok=True)
    for name in LINKED:
        link = project / name
        if not link.is_symlink():
            link.symlink_to(Path("..") / name)
    params = yaml.safe_load((root / PARAMS_FILE).read_text(encoding="utf-8")) | demo
    write_bytes(project / PARAMS_FILE, yaml.safe_dump(params, sort_keys=False, allow_unicode=True).encode())
    if not (project / ".dvc").is_dir():
        subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet", "--no-scm"], cwd=project, check=True)
    return project


def prompts_picture(
    drawer: Drawer,
    prompts: Sequence[str] = PROMPTS,
    scales: Sequence[float] = SCALES,
    *,
    columns: int = COLUMNS,
    seed: int = 0,
) -> Image.Image:
    """A row a prompt, with its words and a star if training has not seen them; for each guidance scale some columns.
    A row's noise is the same at every scale.
    """
    asked = [prompt for prompt in prompts for _ in range(columns)]
    drawn = [drawer.sample(len(asked), seed=seed, prompt=asked, guidance_scale=scale) for scale in scales]
    cells = np.stack(drawn).reshape(len(scales), len(prompts), columns, *drawer.codec.shape).swapaxes(0, 1)
    seen = {text for column in drawer.columns if isinstance(column, PromptColumn) for text in column.captions}
    names = [prompt if prompt in seen else f"{prompt} *" for prompt in prompts]
    above = [f"guidance scale {scale:g}" if not column else "" for scale in scales for column in range(columns)]
    flat = cells.reshape(-1, *drawer.codec.shape)
    picture = grid(flat, len(scales) * columns, captions=above, names=names, longest_name=max(map(len, names)))
    notes = ["* not among the training captions", drawer.attribution or ""]
    for line in (line for note in notes for line in textwrap.wrap(note, picture.width // LETTER)):
        picture = captioned(picture, line)
    return picture


def run(demo: Mapping[str, Any], folder: Path, model: str) -> int:
    """The whole of a demo: its project, the pipeline, the picture.

    Args:
        demo, folder: as for `make_project`.
        model: that draws the prompts: a model or a cascade.

    Returns:
        The exit code.
    """
    project = make_project(Path.cwd(), demo, folder)
    os.chdir(project)
    if code := retrain.main([]):
        return code
    drawer = ddpm.load(f"models/{model}")
    with atomic_file(PICTURE) as temporary:
        save_png(prompts_picture(drawer), temporary, origin_of(drawer, 0, {}), optimize=True)
    print(
        f"\n{project / PICTURE}: {len(PROMPTS)} prompts at {len(SCALES)} guidance scales. Pictures of other words:\n"
        f"    cd {project.name}\n"
        '    ddpm sample models:/ddpm-emoji@champion --prompt "red heart" --n 8 --out hearts.png\n'
        "    ddpm serve models:/ddpm-emoji@champion"
    )
    return 0


def main() -> int:
    return run(DEMO, FOLDER, CASCADE)


if __name__ == "__main__":
    sys.exit(main())
