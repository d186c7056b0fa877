"""Captions beside a folder's images, by the two conventions that tools share."""

from __future__ import annotations

import csv
import io
import itertools
import json
import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ddpm.conditioning.text_limits import check_text
from ddpm.errors import UserError, brief, listed

CaptionRule = Literal["complete", "partial", "ignored"]
SIDECAR = ".txt"
_KEYS = ("file_name", "text")
HINT = "control_file_name"  # of a row: the image's hint, see `hints`
_LEAVE_OUT = "set `data.captions: ignored` to leave such files out"
_ALLOW = "set `data.captions: partial`, where an image without one has the empty caption"

# Each caption of an image, and where it is written.
_Captions = list[tuple[str, str]]


class Captioned(NamedTuple):
    """The images among a folder's files, and what is written about them.

    Attributes:
        images: their names, in the order of the files.
        captions: of each image by its name, one or more; empty where the folder has no captions.
    """

    images: list[str]
    captions: dict[str, tuple[str, ...]]


def find_captions(folder: Path, files: Sequence[str], rule: CaptionRule = "complete") -> Captioned:
    """Tell the captions of a folder from its images.

    - Hugging Face's imagefolder: `metadata.jsonl` or `metadata.csv` with `file_name`, relative to its own folder, and
      `text`, which in JSON may be a list; several rows of one image are several captions;
    - kohya's sidecars: `a.txt` beside `a.png`; each line that is not blank is a caption. Where no file NAME.txt lies
      beside an image of its name, such files are not captions, but files that are no images.

    Blanks around a caption are removed; other columns of a table are ignored.

    Args:
        folder: where the files are.
        files: their names relative to it.
        rule: `data.captions`. complete: all images have captions or none has; partial: an image without one has the
            empty caption; ignored: all files of these kinds are left out.

    Raises:
        UserError: a caption is missing, empty, too long or not UTF-8, its image is missing, a file of captions is
            damaged, or the folder has both conventions; names the file.
    """
    tables = tables_in(files)
    sidecars = [name for name in files if name.lower().endswith(SIDECAR)]
    beside = _by_stem(set(files) - {*tables, *sidecars})
    if rule != "ignored" and not any(_stem(name) in beside for name in sidecars):
        sidecars = []
    images = [name for name in files if name not in {*tables, *sidecars}]
    if rule == "ignored" or not (tables or sidecars):
        return Captioned(images, {})
    _check_one_convention(folder, tables, sidecars)
    captions = _of_tables(folder, tables, set(images)) if tables else _of_sidecars(folder, sidecars, beside)
    if rule == "complete" and captions:
        _check_complete(folder, images, captions)
    if not captions:
        return Captioned(images, {})
    return Captioned(images, {name: tuple(text for _, text in captions.get(name, [("", "")])) for name in images})


def _stem(name: str) -> str:
    return posixpath.splitext(name)[0]


def _by_stem(names: set[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        found.setdefault(_stem(name), []).append(name)
    return found


def _check_one_convention(folder: Path, tables: Sequence[str], sidecars: Sequence[str]) -> None:
    by_place = sorted(tables, key=posixpath.dirname)
    pairs = [pair for pair in itertools.pairwise(by_place) if len({posixpath.dirname(name) for name in pair}) == 1]
    if tables and sidecars:
        pairs = [(tables[0], sidecars[0])]
    if pairs:
        raise UserError(f"{folder}: captions in both {' and '.join(pairs[0])}; keep one of them, or {_LEAVE_OUT}")


def _check_complete(folder: Path, images: Sequence[str], captions: Mapping[str, _Captions]) -> None:
    for name, found in captions.items():
        if empty := [where for where, text in found if not text]:
            raise UserError(f"{empty[0]}: an empty caption of {name}; write one, or {_ALLOW}")
    if missing := [name for name in images if name not in captions]:
        raise UserError(
            f"captions missing: {folder / missing[0]} has none, as {len(missing)} of {len(images)} images; write them, "
            f"or {_ALLOW}"
        )


def _of_sidecars(folder: Path, sidecars: Sequence[str], beside: Mapping[str, list[str]]) -> dict[str, _Captions]:
    captions: dict[str, _Captions] = {}
    for name in sidecars:
        path, images = folder / name, beside.get(_stem(name))
        if images is None:
            raise UserError(f"{path}: a caption without an image of its name; remove it, or {_LEAVE_OUT}")
        lines = [line for line in _text(path).split("\n") if line.strip()] or [""]
        found = [(str(path), _caption(line, str(path))) for line in lines]
        captions |= dict.fromkeys(images, found)
    return captions


def _of_tables(folder: Path, tables: Sequence[str], images: set[str]) -> dict[str, _Captions]:
    captions: dict[str, _Captions] = {}
    found = 0
    for table in tables:
        for where, row in rows_of(folder / table):
            name, texts = _of_row(row, where)
            image = posixpath.normpath(posixpath.join(posixpath.dirname(table), name))
            if image not in images:
                raise UserError(f"{where}: {brief(name)}: no such image")
            if texts:
                captions.setdefault(image, []).extend((where, _caption(text, where)) for text in texts)
            found += 1
    if not found:
        raise UserError(f"{folder / tables[0]}: no captions in it; remove it, or {_LEAVE_OUT}")
    return captions


def tables_in(files: Sequence[str]) -> list[str]:
    """The names of tables among those of files."""
    return [name for name in files if posixpath.basename(name) in _READERS]


def rows_of(table: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a table, each with where it is.

    Raises:
        UserError: it is damaged.
    """
    for line, row in _READERS[table.name](_text(table), table):
        yield f"{table}: line {line}", row


def _of_row(row: Mapping[Any, Any], where: str) -> tuple[str, Sequence[str]]:
    """The file's name and the texts in a row; one that tells of a hint needs none."""
    if HINT in row and "text" not in row:
        row = {**row, "text": []}
    if missing := [key for key in _KEYS if key not in row]:
        raise UserError(
            f"{where}: `{missing[0]}` is missing, found {listed([*map(str, row)]) or 'nothing'}; {_LEAVE_OUT}"
        )
    name, text = (row[key] for key in _KEYS)
    texts = text if isinstance(text, list) and (text or HINT in row) else [text]
    if not isinstance(name, str) or not all(isinstance(each, str) for each in texts):
        raise UserError(f"{where}: expected text in `file_name` and `text`, found {brief(name)} and {brief(text)}")
    return name, texts


def _caption(text: str, where: str) -> str:
    try:
        return check_text(text.strip())
    except ValueError as error:
        raise UserError(f"{where}: the caption: {error}") from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def _json_lines(text: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    # Not `splitlines`, which also splits where JSON has U+2028 in a string.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise UserError(f"{path}: line {number}: not JSON, found {brief(line)}") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}: line {number}: expected an object, found {brief(row)}")
        yield number, row


def _csv_rows(text: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num + 1}: not CSV: {error}") from None


_READERS: dict[str, Callable[[str, Path], Iterator[tuple[int, dict[str, Any]]]]] = {
    "metadata.jsonl": _json_lines,
    "metadata.csv": _csv_rows,
}
