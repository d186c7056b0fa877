"""Pictures that `ddpm sample --like` is given, as what a model draws like them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddpm.drawer import Drawer
from ddpm.drawer.likeness import STRENGTH, Likeness
from ddpm.errors import UserError, listed


@dataclass(frozen=True)
class Alike:
    """What is asked for; as of `drawer.likeness.Likeness`, with files for pictures."""

    files: tuple[Path, ...]
    mix: int | None = None
    change: tuple[str, str] | None = None
    strength: float | None = None

    @property
    def in_words(self) -> dict[str, str]:
        """What files of the drawn pictures say of it."""
        found = {"Like": listed([*map(str, self.files)])}
        if self.mix is not None:
            found["Mix"] = str(self.mix)
        if self.change is not None:
            found |= {"From": self.change[0], "To": self.change[1], "Strength": f"{self._strength:g}"}
        return found

    @property
    def _strength(self) -> float:
        return STRENGTH if self.strength is None else self.strength

    def likeness(self, drawer: Drawer, model: str) -> Likeness:
        """
        Args:
            model: what errors call the drawer.

        Raises:
            UserError: the model cannot be asked for it, a picture cannot be read, or the options do not go together.
        """
        if drawer.encoder is None:
            raise UserError(
                f"--like: {model} draws no pictures of CLIP embeddings: it was trained without condition.embedding"
            )
        return self._like(np.stack([_read(file, drawer.encoder.shape) for file in self.files]))

    def check(self) -> None:
        """Refuse, before a model is opened, what is wrong whatever the pictures are.

        Raises:
            UserError: the options do not go together.
        """
        self._like(np.zeros((len(self.files), 1, 1, 1), np.uint8))

    def _like(self, pictures: NDArray[np.uint8]) -> Likeness:
        try:
            return Likeness(pictures, self.mix, self.change, self._strength)
        except ValueError as error:
            raise UserError(f"--{error}") from None  # begins with the name of the option


def _read(file: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """
    Raises:
        UserError: the file is missing, or no picture.
    """
    from ddpm.data.given import read_any_picture
    from ddpm.data.images import BadImageError

    try:
        return read_any_picture(file, shape)
    except OSError as error:
        raise UserError(f"--like {file}: {error.strerror or error}") from None
    except BadImageError as error:
        raise UserError(f"--like {file}: {error}") from None
