"""Data that are arrays of real numbers, and not images: the swiss roll, and sequences of a user's own."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddpm.codecs.scale import KindName
from ddpm.errors import UserError

POINTS, SEQUENCES = "points.npy", "sequences.npy"
ROLL_POINTS, ROLL_NOISE, ROLL_SEED = 10_000, 0.5, 0


@dataclass(frozen=True)
class RawArray:
    """All data of a source, [N, C] points or [N, C, L] sequences of any real type, mapped from their file."""

    kind: KindName
    values: np.ndarray


def make_swiss_roll(into: Path) -> None:
    """Scikit-learn's swiss roll seen along its axis, where it is a spiral: 10,000 points [N, 2] float32."""
    from sklearn.datasets import make_swiss_roll

    rolled, _ = make_swiss_roll(ROLL_POINTS, noise=ROLL_NOISE, random_state=ROLL_SEED)
    # Rounded, so that a machine whose sine differs in the last digit makes the same bytes.
    np.save(into / POINTS, rolled[:, [0, 2]].round(4).astype(np.float32))


def read_points(data: Path) -> RawArray:
    """The file that `make_swiss_roll` wrote."""
    return RawArray("points", _mapped(data / POINTS, 2, "[N, C]"))


def copy_sequences(file: Path, into: Path) -> None:
    """Copy a user's array.

    Raises:
        UserError: there is no such file, or it holds no sequences.
    """
    if not file.is_file():
        raise UserError(f"data.path: {file}: no such file; `source: sequences` needs one .npy file, [N, C, L]")
    _mapped(file, 3, "[N, C, L]")
    shutil.copyfile(file, into / SEQUENCES)


def read_sequences(data: Path) -> RawArray:
    """The file that `copy_sequences` wrote."""
    return RawArray("sequences", _mapped(data / SEQUENCES, 3, "[N, C, L]"))


def _mapped(file: Path, axes: int, shape: str) -> np.ndarray:
    """An .npy file's numbers, mapped; pickled objects are never loaded."""
    try:
        values = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{file}: not an .npy file of numbers: {' '.join(str(error).split())}") from None
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "iuf":
        found = values.dtype if isinstance(values, np.ndarray) else "an archive"
        raise UserError(f"{file}: expected real numbers, found {found}")
    if values.ndim != axes or 0 in values.shape[1:]:
        raise UserError(f"{file}: expected the shape {shape}, found {list(values.shape)}")
    if len(values) < 2:
        raise UserError(f"{file}: {len(values)} rows; a training and a validation split need two")
    return values
