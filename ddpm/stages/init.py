"""`ddpm init DIR --images PATH`: a short params.yaml for a folder of images, with a network that fits their size."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from ddpm.config.base import validate
from ddpm.config.params import PARAMS_FILE, Params
from ddpm.data import folder
from ddpm.data.captions import find_captions
from ddpm.data.images import FORMATS
from ddpm.errors import UserError
from ddpm.files import write_bytes

LOOKED_AT = 200  # images that are opened to learn sizes and colours
SIZES = (8, 16, 32)  # that are proposed; larger ones are asked for
LARGEST_SIDE = 256
LEAST_IMAGES = 8  # half of them for validation is what an evaluation needs
GREY = ("1", "L", "LA", "I", "F")


@dataclass(frozen=True)
class Found:
    """What a folder of images holds."""

    count: int
    classes: tuple[str, ...] | None
    subfolders: folder.Subfolders
    coloured: bool
    smallest: int
    """The shortest side of those looked at, pixels."""
    captioned: int = 0
    """How many of the images have a caption."""

    def __str__(self) -> str:
        groups = f"in {len(self.classes)} class folders" if self.classes else "without classes"
        colour = "in colour" if self.coloured else "grey"
        captions = {0: "", self.count: ", with captions"}.get(self.captioned, f", {self.captioned} with captions")
        return f"{self.count} images {groups}{captions}, {colour}; the shortest side is {self.smallest} pixels"

    @property
    def hints(self) -> list[str]:
        """What params.yaml can do with the data beyond what is written there."""
        classes = ["The folders are classes: `condition: {label: {}}` makes the model conditional."]
        captions = ["The images have captions: `condition: {prompt: {}}` makes the model draw what a text describes."]
        return [*(classes if self.classes else []), *(captions if self.captioned else [])]


def initialise(directory: Path, images: Path, *, size: int | None = None, channels: int | None = None) -> str:
    """Write `directory`/params.yaml.

    Args:
        images: a directory of image files, directly or in class folders.
        size: pixels a side, even; None: 32, or less where the images are smaller.
        channels: 1 or 3; None: as the images are.

    Returns:
        what was found and written, and what to type next.

    Raises:
        UserError: there is a params.yaml, `images` is no folder of images, or the size is not one that a U-Net halves.
    """
    path = directory / PARAMS_FILE
    if path.exists():
        raise UserError(f"{path}: exists already; name another directory, or edit it")
    if size is not None and (size % 2 or not SIZES[0] <= size <= LARGEST_SIDE):
        raise UserError(f"--size must be an even number from {SIZES[0]} to {LARGEST_SIDE}, found {size}")
    found = look_at(images)
    size = size or max((known for known in SIZES if known <= found.smallest), default=SIZES[0])
    params = settings(found, str(images.resolve()), size, channels or (3 if found.coloured else 1))
    name = validate(Params, params, str(path)).data.dataset_name
    directory.mkdir(parents=True, exist_ok=True)
    write_bytes(path, _as_text(params).encode())
    said = [f"{images}: {found}", f"{path}: {name}, {size}×{size} pixels. Next:", "", _next(directory), *found.hints]
    return "\n".join(said)


def look_at(images: Path) -> Found:
    """How many images a folder holds, their classes and captions, and from some of them their colours and sizes.

    Raises:
        UserError: it is no folder, it holds too few images, a file in it is not an image, or its captions are damaged.
    """
    if not images.is_dir():
        raise UserError(f"--images {images}: no such folder")
    names, captions = find_captions(images, folder.files_in(images), "partial")
    if len(names) < LEAST_IMAGES:
        raise UserError(f"--images {images}: expected at least {LEAST_IMAGES} images, found {len(names)}")
    depths = {name.count("/") for name in names}
    subfolders = _what_subfolders_say(depths)
    headers = list(_headers(images, names[:: -(-len(names) // LOOKED_AT)]))
    return Found(
        count=len(names),
        classes=folder.read(images, subfolders=subfolders, captions="ignored").classes,
        subfolders=subfolders,
        coloured=any(mode.split(";")[0] not in GREY for mode, _ in headers),
        smallest=min(min(sides) for _, sides in headers),
        captioned=sum(any(texts) for texts in captions.values()),
    )


def _what_subfolders_say(depths: Set[int]) -> folder.Subfolders:
    if depths in ({0}, {1}):
        return "classes"
    return "ignored" if 0 in depths else "nested-classes"


def _headers(images: Path, names: Iterable[str]) -> Iterator[tuple[str, tuple[int, int]]]:
    """Mode and size of some of the images; nothing is decoded."""
    for name in names:
        try:
            with Image.open(images / name, formats=FORMATS) as image:
                yield image.mode, image.size
        except (OSError, ValueError, Image.DecompressionBombError):
            raise UserError(f"{images / name}: not an image; --images expects a folder of images alone") from None


def settings(found: Found, path: str, size: int, channels: int) -> dict[str, Any]:
    """params.yaml for images of `size` pixels a side.

    The network has some million parameters, more for larger images. Its levels halve the side down to 8, or to
    2 of small images, as far as the side is even.
    """
    small = size <= SIZES[1]
    width = 32 if size <= SIZES[2] else 64
    steps = 2200 if small else 5000 if size <= SIZES[2] else 20_000
    sides = [size]
    while sides[-1] % 2 == 0 and sides[-1] > (2 if small else 8) and len(sides) < (3 if small else 6):
        sides.append(sides[-1] // 2)
    attended = max((side for side in sides[1:] if side <= 16), default=sides[-1])
    subfolders = {} if found.subfolders == "classes" else {"subfolders": found.subfolders}
    captions = {"captions": "partial"} if 0 < found.captioned < found.count else {}
    return {
        "seed": 0,
        "data": {
            "source": "folder",
            "path": path,
            **subfolders,
            **captions,
            "image_size": size,
            "channels": channels,
            "validation_fraction": 0.2 if found.count >= 20 else 0.5,
        },
        "extractor": {},
        "evaluation": {"samples": max(100, min(2000, found.count))},
        "export": {},
        "variants": ["ddpm"],
        "guides": [],
        "autoencoders": [],
        "encoders": [],
        "latents": {},
        "cascades": {},
        "unclips": {},
        "controls": {},
        "models": {
            "ddpm": {
                "network": {
                    "width": width,
                    "multipliers": [1, 2, 2, 4, 4, 4][: len(sides)],
                    "blocks": 1,
                    "attention_resolutions": [attended],
                    "groups": width // 4,
                    "dropout": 0.0 if found.count > 1000 else 0.1,
                },
                "condition": {},
                "codec": {},
                "process": {"variance": "fixed_small"},
                "objective": {"loss": "simple"},
                "training": {
                    "steps": steps,
                    "batch_size": 64,
                    "learning_rate": 2e-3 if small else 1e-3 if size <= SIZES[2] else 5e-4,
                    "warmup_steps": steps // 20,
                    "decay": "cosine",
                    # Fewer steps than its warm-up takes do not come to any decay.
                    **({} if small else {"ema_decay": 0.998}),
                    "checkpoint_every": 250,
                    "log_every": 25,
                },
                "sampling": {"sampler": "ddim", "steps": 50, "eta": 1.0},
            }
        },
    }


_HEAD = """\
# What is not written here has its default: `ddpm config` prints all keys, their meaning and their values.
"""


def _as_text(params: dict[str, Any]) -> str:
    """YAML with lists in one line."""

    class Dumper(yaml.SafeDumper):
        pass

    Dumper.add_representer(
        list, lambda dumper, values: dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True)
    )
    return _HEAD + yaml.dump(params, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=1000)


def _next(directory: Path) -> str:
    lines = {
        "ddpm fetch && ddpm prepare && ddpm fit-extractor": "",
        "ddpm train ddpm --dry-run": "how long it takes here; lower training.steps if that is too long",
        "ddpm train ddpm": "Ctrl-C saves its state; the same command continues",
        "ddpm evaluate ddpm && ddpm export ddpm": "figures and pictures in reports/, ONNX in deploy/",
        "ddpm sample models/ddpm --n 64 --out samples.png": "",
    }
    where = [] if directory.resolve() == Path.cwd() else [f"  cd {shlex.quote(str(directory))}"]
    return "\n".join([*where, *(f"  {line:<50}{f'# {why}' if why else ''}".rstrip() for line, why in lines.items())])
