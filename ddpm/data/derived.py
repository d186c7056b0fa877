"""What a trained model has made of the prepared images, once for all trainings: an array and its manifest, which both
have to be of the model and of the images that there are now."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from ddpm.errors import UserError

Manifest = TypeVar("Manifest", bound=BaseModel)


def open_derived(manifest: Path, array: Path, kind: type[Manifest], again: str) -> tuple[Manifest, NDArray[Any]]:
    """The manifest and the memory-mapped array.

    Args:
        again: the advice at the end of errors: what makes them.

    Raises:
        UserError: a file is missing or damaged.
    """
    try:
        return kind.model_validate_json(manifest.read_bytes()), np.asarray(np.load(array, mmap_mode="r"))
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: no such file; {again}") from None
    except (ValidationError, ValueError, EOFError, OSError):
        raise UserError(f"{manifest.parent}: damaged; {again}") from None


_HASHED = {
    "autoencoder": "the autoencoder with the weights",
    "encoder": "the encoder with the weights",
    "prepared data": "the prepared data with the SHA-256",
}


def check_fresh(path: Path, what: str, found: str, expected: str, again: str) -> None:
    """
    Args:
        what: the hash is of, a key of `_HASHED`.

    Raises:
        UserError: the two hashes differ.
    """
    if found != expected:
        raise UserError(f"{path} is of {_HASHED[what]} {found[:12]}, which now has {expected[:12]}: {again}")
