"""`make demo-unclip`: as `make demo-text`, by way of CLIP's embeddings (DALL-E 2), in the project `.demo-unclip/`.

A CLIP is trained first, then a prior, a decoder and an upsampler. It ends with a picture of what only such a model can
draw: variations of held-out emoji, what is between two of them, and emoji changed by a difference of texts.
"""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import ddpm
from ddpm.config.params import load_params
from ddpm.data.store import SPLITS, PreparedData
from ddpm.drawer import Drawer
from ddpm.drawer.likeness import Likeness
from ddpm.evaluation.pictures import captioned, grid, save_png
from ddpm.files import atomic_file
from ddpm.layout import MODELS, PREPARED
from ddpm.stages.sample import origin_of
from flows import demo_text, retrain

FOLDER, PICTURE, GIVEN = Path(".demo-unclip"), Path("unclip.png"), Path("given.png")
UNCLIP, ENCODER, PRIOR, DECODER, UPSAMPLER = "dalle", "clip-emoji", "prior-emoji", "decoder-emoji", "text-32"
LOW_NOISE = 0.1

# What the demo's params.yaml has in place of this repository's.
DEMO: dict[str, Any] = demo_text.DEMO | {
    "cascades": {},
    "encoders": [ENCODER],
    "unclips": {
        UNCLIP: {
            "encoder": ENCODER,
            "prior": PRIOR,
            "decoder": DECODER,
            "upsampler": UPSAMPLER,
            "low_noise": LOW_NOISE,
        }
    },
}


SHOWN = 8  # pictures drawn in a row
VARIED = ("turtle", "panda", "parrot", "police car")
MIXED = (("beating heart", "orange circle"), ("red square", "blue square"), ("turtle", "parrot"))
# A picture, and the two texts whose difference changes it.
CHANGES = (
    ("raised hand dark skin tone", "hand dark skin tone", "hand light skin tone"),
    ("man farmer", "man", "woman"),
    ("red square", "red circle", "blue circle"),
)


def likeness_picture(drawer: Drawer, data: PreparedData, *, shown: int = SHOWN, seed: int = 0) -> Image.Image:
    """Rows of real pictures and what is drawn like them: variations of one, what is between two, and one that is
    changed by a difference of texts. A row is left out if the data have no picture with its caption.
    """
    pictures = Pictures(data)
    rows: dict[str, NDArray[np.uint8]] = {}

    def draw(name: str, captions: Sequence[str], **asked: Any) -> None:
        if not pictures.have(captions):
            return
        given = pictures.of_captions(captions)
        drawn = drawer.alike(Likeness(given, **asked), shown, seed=seed)
        last = given[1:] if len(given) > 1 else np.full_like(given, 255)
        rows[name] = np.concatenate([given[:1], drawn, last])

    for caption in VARIED:
        draw(caption, [caption])
    for pair in MIXED:
        draw(" to ".join(pair), pair, mix=shown)
    for caption, before, after in CHANGES:
        draw(f"{caption}: {before} to {after}", [caption], mix=shown, change=(before, after))
    picture = grid(np.concatenate([*rows.values()]), shown + 2, names=[*rows], longest_name=max(map(len, rows)))
    for line in textwrap.wrap(drawer.attribution or "", picture.width // demo_text.LETTER):
        picture = captioned(picture, line)
    return picture


class Pictures:
    """Real pictures by their captions."""

    def __init__(self, data: PreparedData) -> None:
        self._splits = [data.split(name) for name in SPLITS]
        self._places = {
            caption: (split, row)
            for split in self._splits
            for row, captions in enumerate(split.captions or ())
            for caption in captions
        }

    def have(self, captions: Iterable[str]) -> bool:
        return all(caption in self._places for caption in captions)

    def of_captions(self, captions: Sequence[str]) -> NDArray[np.uint8]:
        """[N, H, W, C].

        Raises:
            KeyError: there is none of a caption.
        """
        places = [self._places[caption] for caption in captions]
        return np.concatenate([split.rows(np.array([row])) for split, row in places])


def save_given(data: PreparedData, caption: str, path: Path) -> None:
    """The real picture of a caption as a file."""
    (picture,) = Pictures(data).of_captions([caption])
    with atomic_file(path) as temporary:
        save_png(Image.fromarray(picture), temporary)


def main() -> int:
    project = demo_text.make_project(Path.cwd(), DEMO, FOLDER)
    os.chdir(project)
    if code := retrain.main([]):
        return code
    drawer, data = ddpm.load(MODELS / UNCLIP), PreparedData.open(PREPARED)
    seed = load_params().seed
    picture = likeness_picture(drawer, data, seed=seed)
    with atomic_file(PICTURE) as temporary:
        save_png(picture, temporary, origin_of(drawer, seed, {}), optimize=True)
    save_given(data, VARIED[0], GIVEN)
    print(
        f"\n{project / PICTURE}: variations of real emoji, what is between two, and differences of texts. Others:\n"
        f"    cd {project.name}\n"
        '    ddpm sample models:/ddpm-emoji@champion --prompt "red heart" --n 8 --out hearts.png\n'
        f"    ddpm sample models/{UNCLIP} --like {GIVEN} --n 8 --out alike.png\n"
        "    ddpm serve models:/ddpm-emoji@champion"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
