"""params.yaml, `data`: where the raw bytes come from and what becomes of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    Field,
    model_validator,
)

from ddpm.config.base import Bool, Channels, FilePath, Float, Fraction, Positive, Section
from ddpm.errors import brief

DATA_NAME = r"^[a-z0-9][a-z0-9._-]*$"


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError(f"expected one line of text, found {brief(text)}")
    return text


# It goes into each picture's file.
Attribution = Annotated[str, Field(min_length=1, max_length=500), AfterValidator(_one_line)]


class DataConfig(Section):
    """Where the raw bytes come from and what `ddpm prepare` makes of them."""

    source: Literal[
        "digits", "emoji", "mnist", "fashion-mnist", "cifar10", "celeba", "folder", "swiss-roll", "sequences"
    ] = Field("digits", description="where the raw bytes come from")
    path: FilePath | None = Field(
        None,
        description="for `folder`: a directory of images, class subfolders optional; for `sequences`: FILE.npy, "
        "[N, channels, length]",
    )
    name: str | None = Field(
        None,
        pattern=DATA_NAME,
        description="the data set's name, and the model's: ddpm-<name>. Default: the source's, or the folder's",
    )
    image_size: Positive | None = Field(
        None,
        description="pixels a side: resize the shorter side to it, crop the centre; emoji are drawn at this size. "
        "null: sizes must agree, and emoji have 32",
    )
    channels: Channels | None = Field(None, description="1 grey, 3 RGB. null: all images must have the same")
    subfolders: Literal["classes", "nested-classes", "ignored"] = Field(
        "classes",
        description="of `folder`. classes: one level of them, each a class; nested-classes: the first level is the "
        "class, images lie at any depth below; ignored: images at any depth, without classes",
    )
    levels: Positive | tuple[Float, Float] | None = Field(
        None,
        description="of `folder`: the stored value that is white, such as 4095 for 12 bits in 16-bit files, or "
        "[black, white]. null: the range of the files' format",
    )
    captions: Literal["complete", "partial", "ignored"] = Field(
        "complete",
        description="of `folder`, the texts in metadata.jsonl, metadata.csv or NAME.txt beside NAME.png. complete: if "
        "there are any, each image must have one; partial: an image without one has the empty caption; ignored: these "
        "files are left out",
    )
    attribution: Attribution | None = Field(
        None,
        description="credit for the images: noted in the manifest, the model, and the metadata of the pictures it "
        "draws. null: the source's own, which emoji have",
    )
    validation_fraction: Fraction | None = Field(
        None,
        description="share of each class kept for validation; of emoji the share of the base emoji, with all their "
        "variants. null: the images that mnist, fashion-mnist, cifar10 and celeba publish for it, so that all "
        "published training images are trained on; of other sources, 0.2",
    )
    attribute: str | None = Field(
        None,
        description="of `celeba`: one of its 40 attributes, such as Smiling, which tells two classes apart. null: no "
        "classes",
    )
    skip_bad: Bool = Field(False, description="leave unreadable files out and list them in the manifest")
    max_pixels: Positive = Field(50_000_000, description="an image that decodes to more is refused as a bomb")

    @model_validator(mode="after")
    def _folder_needs_a_path(self) -> DataConfig:
        if (self.source in ("folder", "sequences")) != (self.path is not None):
            raise ValueError("`path` goes with `source: folder` and `source: sequences`, and only with them")
        return self

    @model_validator(mode="after")
    def _rules_of_one_source_are_for_it(self) -> DataConfig:
        rules = {"subfolders": "folder", "levels": "folder", "captions": "folder", "attribute": "celeba"}
        for key, source in rules.items():
            if self.source != source and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"`{key}` is for `source: {source}`, found `source: {self.source}`")
        if isinstance(self.levels, tuple) and not (
            all(map(math.isfinite, self.levels)) and self.levels[0] < self.levels[1]
        ):
            raise ValueError(f"`levels` must be [black, white] with black below white, found {list(self.levels)}")
        return self

    @model_validator(mode="after")
    def _image_rules_are_for_images(self) -> DataConfig:
        for key in ("image_size", "channels"):
            if not self.of_images and getattr(self, key) is not None:
                raise ValueError(f"`{key}` is for images, which `source: {self.source}` has none of")
        return self

    @property
    def of_images(self) -> bool:
        """Whether the data are images, which have bounds; others are points or sequences."""
        return self.source not in ("swiss-roll", "sequences")

    @property
    def dataset_name(self) -> str:
        """The name that the registered model carries."""
        if self.name:
            return self.name
        if self.path is None:
            return self.source
        name = Path(self.path).resolve().name.removesuffix(".npy")
        words = "".join(c if c.isalnum() else " " for c in name.lower()).split()
        return "-".join(words) or self.source
