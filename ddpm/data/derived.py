"""What a trained model has made of the prepared images, once for all trainings: an array and its manifest, which both
have to be of the model and of the images that there are now."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from ddpm.data.store import PreparedData, Split, SplitName
from ddpm.errors import UserError

MANIFEST = "manifest.json"

Manifest = TypeVar("Manifest", bound=BaseModel)


class Derived(ABC, Generic[Manifest]):
    """An open directory of what a model has made of the prepared images: float32 [count, ...], memory mapped."""

    array_file: ClassVar[str]
    manifest_type: ClassVar[type[Any]]
    maker: ClassVar[str]
    """What the model is, in errors."""
    command: ClassVar[str]
    """Of `ddpm`: what makes the directory."""

    def __init__(self, manifest: Manifest, array: NDArray[np.float32], data: PreparedData) -> None:
        self.manifest = manifest
        self._array, self._data = array, data

    @classmethod
    def open(cls, path: Path, data: PreparedData, maker_sha256: str) -> Self:
        """
        Args:
            data: that it is made of.
            maker_sha256: of the weights of the model that makes it, as it is now.

        Raises:
            UserError: it is missing or damaged, or of other data or another model.
        """
        again = f"run `ddpm {cls.command} {path.name}`"
        try:
            manifest = cls.manifest_type.model_validate_json((path / MANIFEST).read_bytes())
            array = np.asarray(np.load(path / cls.array_file, mmap_mode="r"))
        except FileNotFoundError as error:
            raise UserError(f"{error.filename}: no such file; {again}") from None
        except (ValidationError, ValueError, EOFError, OSError):
            raise UserError(f"{path}: damaged; {again}") from None
        found = cls(manifest, array, data)
        found._check_fresh(path, maker_sha256, again)
        if array.dtype != np.float32 or array.shape != found.stored_shape:
            raise UserError(f"{path / cls.array_file}: damaged ({array.dtype} {list(array.shape)}); {again}")
        return found

    @property
    @abstractmethod
    def made_of(self) -> tuple[str, str]:
        """The SHA-256 of the model's weights, and of the prepared images."""

    @property
    @abstractmethod
    def stored_shape(self) -> tuple[int, ...]:
        """Of the array, by the manifest."""

    def split(self, name: SplitName) -> Split:
        """Of a split's images, with the labels and captions of these: float32 [n, ...]."""
        return self._data.split(name).of(self._array)

    def _check_fresh(self, path: Path, maker_sha256: str, again: str) -> None:
        maker, images = self.made_of
        for what, found, expected in (
            (f"the {self.maker} with the weights", maker, maker_sha256),
            ("the prepared data with the SHA-256", images, self._data.manifest.images_sha256),
        ):
            if found != expected:
                raise UserError(f"{path} is of {what} {found[:12]}, which now has {expected[:12]}: {again}")
