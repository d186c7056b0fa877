"""A folder of files: its listing, its version, a copy of it, and the images in it."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NoReturn

from pydantic import BaseModel, ConfigDict

from ddpm.data.captions import CaptionRule, find_captions
from ddpm.data.hints import check_hints, find_hints
from ddpm.data.images import RawImages, Sample, decode
from ddpm.errors import UserError

Subfolders = Literal["classes", "nested-classes", "ignored"]


class Fingerprint(BaseModel):
    """The version of a directory's content, as DVC 3 computes and writes it."""

    model_config = ConfigDict(frozen=True)

    md5: str
    size: int
    nfiles: int


# What file managers and editors leave in any folder, as .dvcignore has it too: it is not part of the data.
LITTER = (
    ".DS_Store",
    "._*",
    "__MACOSX",
    "[Tt]humbs.db",
    "[Dd]esktop.ini",
    ".directory",
    "*~",
    ".*.sw[a-p]",
    "#*#",
    ".#*",
)


def is_litter(name: str) -> bool:
    """Whether a file or folder of that name is left by a file manager or an editor."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in LITTER)


def files_in(folder: Path, *, hidden: bool = False) -> list[str]:
    """The files below a folder: paths relative to it, separated by `/`, sorted. Links are followed.

    What file managers and editors leave there (`LITTER`) is left out.

    Args:
        hidden: also what starts with a dot, and what lies in a folder that does.

    Raises:
        UserError: something there is neither file nor folder, cannot be listed, is a link to its own parent, or has a
            name that no list of files can hold.
    """
    found = []
    for where, folders, files in os.walk(folder, followlinks=True, onerror=_unreadable):
        here = Path(where)
        folders[:] = [name for name in folders if _counts(name, hidden)]
        for name in folders:
            if here.resolve().is_relative_to((here / name).resolve()):
                raise UserError(f"{here / name}: a link to a folder that it lies in")
        for name in files:
            if not _counts(name, hidden):
                continue
            path = (here / name).relative_to(folder).as_posix()
            if "\n" in path or not _is_utf_8(path):
                raise UserError(f"{folder}: the file name {path!a} is not one line of UTF-8; rename it")
            if not (here / name).is_file():
                raise UserError(f"{here / name}: neither a file nor a folder (a broken link?)")
            found.append(path)
    return sorted(found)


def _counts(name: str, hidden: bool) -> bool:
    return (hidden or not name.startswith(".")) and not is_litter(name)


def _is_utf_8(name: str) -> bool:
    """Python marks other bytes of a file name with lone surrogates. DVC cannot record those."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def _unreadable(error: OSError) -> NoReturn:
    raise UserError(f"{error.filename}: {error.strerror}")


@dataclass(frozen=True)
class Listing:
    """The files of a folder: the MD5 of each by its relative path, sorted, and their bytes together."""

    files: dict[str, str]
    size: int

    @property
    def fingerprint(self) -> Fingerprint:
        """The version that `dvc add` would record for the folder."""
        md5 = hashlib.md5(self.as_dvc(), usedforsecurity=False).hexdigest()
        return Fingerprint(md5=f"{md5}.dir", size=self.size, nfiles=len(self.files))

    def as_dvc(self) -> bytes:
        """The list as DVC keeps it in its cache; its MD5 is that of the version."""
        entries = [{"md5": md5, "relpath": name} for name, md5 in self.files.items()]
        return json.dumps(entries).encode()


def files_of(listing: bytes) -> dict[str, str]:
    """What `Listing.as_dvc` wrote."""
    return {entry["relpath"]: entry["md5"] for entry in json.loads(listing)}


def differences(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """In what files two versions of a folder differ: `added a.png, b.png; changed c.png`, the first few of each."""
    groups = {
        "added": [name for name in after if name not in before],
        "removed": [name for name in before if name not in after],
        "changed": [name for name in after if name in before and before[name] != after[name]],
    }
    return "; ".join(f"{what} {_first_few(names)}" for what, names in groups.items() if names)


def _first_few(names: Sequence[str], count: int = 3) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def listing(folder: Path, *, hidden: bool = True, on_file: Callable[[int], object] = lambda count: None) -> Listing:
    """The files below a folder and their MD5; `on_file(1)` is called after each."""
    return listing_of({name: folder / name for name in files_in(folder, hidden=hidden)}, on_file)


def listing_of(files: Mapping[str, Path], on_file: Callable[[int], object] = lambda count: None) -> Listing:
    """Of a folder that would hold these files under these names, which are sorted."""
    hashes = {}
    for name, path in files.items():
        hashes[name] = _md5_of(path)
        on_file(1)
    return Listing(hashes, sum(path.stat().st_size for path in files.values()))


def fingerprint(folder: Path, *, hidden: bool = True) -> Fingerprint:
    """The version that `dvc add` would record for a folder.

    That is the MD5 of a JSON list of every file's MD5 and relative path, in the order of the paths, with `.dir` behind.
    """
    return listing(folder, hidden=hidden).fingerprint


def _md5_of(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, partial(hashlib.md5, usedforsecurity=False)).hexdigest()
    except OSError as error:
        _unreadable(error)


def copy(folder: Path, into: Path, *, subfolders: Subfolders = "classes") -> None:
    """Copy the visible files of a folder, structure kept, links resolved.

    Args:
        subfolders: what folders say, as of `read`.

    Raises:
        UserError: there is no such folder, or nothing in it to copy, or a class folder has no images.
    """
    if not folder.is_dir():
        raise UserError(f"data.path: {folder}: no such folder")
    files = files_in(folder)
    if not files:
        raise UserError(f"data.path: {folder}: an empty folder; expected images, directly or in class folders")
    _classes_in(folder, files, subfolders)
    for name in files:
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, into / name)


def _classes_in(folder: Path, files: Sequence[str], subfolders: Subfolders) -> list[str]:
    """The names of the class folders, sorted.

    Raises:
        UserError: there are some, and one beside them has no images.
    """
    classes = sorted({name.split("/")[0] for name in files if "/" in name and subfolders != "ignored"})
    there = {path.name for path in folder.iterdir() if path.is_dir() and _counts(path.name, hidden=False)}
    if classes and (empty := sorted(there.difference(classes))):
        raise UserError(
            f"{folder / empty[0]}: a class folder without images; put images of the class into it, or remove it"
        )
    return classes


def read(folder: Path, *, subfolders: Subfolders = "classes", captions: CaptionRule = "complete") -> RawImages:
    """The images of a folder, in the order of their paths.

    Every visible file must be an image, whatever its suffix, or hold captions. Either all images lie directly in the
    folder (no labels), or all in class folders (the labels, numbered in the order of the folders' names). A single
    class folder tells nothing apart, so its images have no labels.

    Args:
        subfolders: what folders say. `classes`: a class each, and there is one level of them; `nested-classes`: the
            first level is the class, whatever lies deeper; `ignored`: nothing.
        captions: see `find_captions`. Hints are found by `hints.find_hints`; a hint is no image of the folder.

    Raises:
        UserError: images both with and without a class folder, or in deeper folders than that, or a class folder has
            no images; or as `find_captions`.
    """
    names = files_in(folder)
    hints = find_hints(folder, names)
    files, texts = find_captions(folder, [name for name in names if name not in {*hints.values()}], captions)
    check_hints(folder, files, hints)
    deep = next((name for name in files if name.count("/") > 1), None)
    if deep and subfolders == "classes":
        raise UserError(
            f"{folder / deep}: a folder in a class folder; expected {folder}/CLASS/IMAGE. Set `data.subfolders` to "
            f"nested-classes, which makes {deep.split('/')[0]} the class, or to ignored, for no classes"
        )
    classes = _classes_in(folder, files, subfolders)
    if classes and (unlabelled := [name for name in files if "/" not in name]):
        raise UserError(
            f"labels missing: {folder / unlabelled[0]} lies beside the class folders {', '.join(classes[:3])}"
            f"{', ...' if len(classes) > 3 else ''}; put every image into a class folder, or none, "
            "or set `data.subfolders: ignored`"
        )
    labels = {name: number for number, name in enumerate(classes)} if len(classes) > 1 else None

    def samples() -> Iterator[Sample]:
        for name in files:
            label = labels[name.split("/")[0]] if labels else None
            hint = partial(decode, folder / hints[name]) if hints else None
            yield Sample(name, partial(decode, folder / name), label, captions=texts.get(name, ()), hint=hint)

    return RawImages(
        len(files), tuple(labels) if labels else None, samples(), captioned=bool(texts), hinted=bool(hints)
    )
