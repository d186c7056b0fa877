"""Images that go into one array must be square, and of one size and one number of channels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ddpm.errors import UserError


class Alike:
    """Holds every image of a data set against the first one."""

    def __init__(self, size_key: str, channels_key: str) -> None:
        """
        Args:
            size_key, channels_key: what the user sets to have images resized, and turned grey or into colour.
        """
        self._size_key, self._channels_key = size_key, channels_key
        self._first: tuple[Path, tuple[int, ...]] | None = None

    def check(self, file: Path, row: np.ndarray) -> None:
        """
        Args:
            row: [H, W, C], the image of the file.

        Raises:
            UserError: it does not fit; names both files, and the key that makes them fit.
        """
        if self._first is None:
            height, width, _ = row.shape
            if height != width:
                raise UserError(
                    f"{file} is {width}×{height}, not square; set `{self._size_key}` to the side images should get"
                )
            self._first = file, row.shape
        elif row.shape != self._first[1]:
            raise self._unlike(*self._first, file, row.shape)

    def _unlike(self, file: Path, shape: tuple[int, ...], other: Path, other_shape: tuple[int, ...]) -> UserError:
        (height, width, channels), (other_height, other_width, _) = shape, other_shape
        if (height, width) != (other_height, other_width):
            return UserError(
                f"mixed sizes: {file} is {width}×{height}, {other} is {other_width}×{other_height}; "
                f"set `{self._size_key}` to the side all images should get"
            )
        kind, other_kind = ("grey", "in colour") if channels == 1 else ("in colour", "grey")
        return UserError(
            f"mixed modes: {file} is {kind}, {other} is {other_kind}; set `{self._channels_key}` to 1 or 3"
        )
