"""Hints beside a folder's images, by Hugging Face's imagefolder convention: a column of `metadata.jsonl` or
`metadata.csv` with the names of other images."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from pathlib import Path

from ddpm.data.captions import HINT, rows_of, tables_in
from ddpm.errors import UserError, brief


def find_hints(folder: Path, files: Sequence[str]) -> dict[str, str]:
    """The hint of each image, by the images' names; empty where no table has a column `control_file_name`.

    Args:
        folder: where the files are.
        files: their names relative to it.

    Raises:
        UserError: a hint or its image is missing, an image has two, or a table is damaged; names the file.
    """
    found, there = dict[str, str](), set(files)
    for table in tables_in(files):
        for where, row in rows_of(folder / table):
            if not (hint := row.get(HINT)):
                continue
            names = []
            for key, name in (("file_name", row.get("file_name")), (HINT, hint)):
                path = (
                    posixpath.normpath(posixpath.join(posixpath.dirname(table), name)) if isinstance(name, str) else ""
                )
                if path not in there:
                    raise UserError(f"{where}: `{key}` {brief(name)}: no such image")
                names.append(path)
            if found.setdefault(*names) != names[1]:
                raise UserError(f"{where}: a second hint of {names[0]}; expected one")
    return found


def check_hints(folder: Path, images: Sequence[str], hints: dict[str, str]) -> None:
    """Check that all images have a hint, or none has.

    Raises:
        UserError: some have none.
    """
    if hints and (missing := [name for name in images if name not in hints]):
        raise UserError(
            f"hints missing: {folder / missing[0]} has none, as {len(missing)} of {len(images)} images; write "
            f"`{HINT}` for each image, or for none"
        )
