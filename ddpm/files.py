"""Files that are either whole or absent: temporary name, fsync, rename. And their hashes."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_CHUNK = 1 << 20


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Have the kernel write a file or a directory to the disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(directory: Path) -> None:
    """Sync a directory and all below it; with many files one sync of the whole file system is far cheaper."""
    files = list(directory.rglob("*"))
    if len(files) > 100:
        os.sync()
        return
    for file in [*files, directory]:
        sync(file)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well it becomes `path`, else it is removed.

    What killed processes left of such paths is removed too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(path, f".tmp{path.suffix}") as temporary:
        yield temporary
        temporary.chmod(0o644)
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    remove_leftovers(path.parent, path.name)


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory; when the block ends well it takes the place of `path`, else it is removed.

    An older `path` stays whole until the new one is. Between the two renames there is an instant with neither,
    never one with half of either. What killed processes left of such directories is removed too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(path, ".tmp", directory=True) as temporary:
        yield temporary
        temporary.chmod(0o755)
        _sync_tree(temporary)
        if path.exists():
            with _temporary(path, ".old.tmp", directory=True) as replaced:
                path.replace(replaced / path.name)
                temporary.replace(path)
        else:
            temporary.replace(path)
        sync(path.parent)
    remove_leftovers(path.parent, path.name)


def remove_leftovers(directory: Path, name: str = "*") -> None:
    """Remove the temporaries of files and directories of that name whose process was killed.

    One that is being written is locked by its writer, and the kernel frees that lock when the writer ends. Where the
    file system has no such locks, nothing is removed.
    """
    pattern = name if name == "*" else glob.escape(name)
    for temporary in directory.glob(f".{pattern}.*.tmp*"):
        with contextlib.suppress(OSError):
            descriptor = os.open(temporary, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(temporary)
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def _temporary(path: Path, suffix: str, *, directory: bool = False) -> Iterator[Path]:
    """A new file or directory beside `path`, locked; removed in the end, if it is still there."""
    temporary, descriptor = _locked(path, suffix, directory)
    try:
        yield temporary
    finally:
        _remove(temporary)
        os.close(descriptor)


def _locked(path: Path, suffix: str, directory: bool) -> tuple[Path, int]:
    prefix = f".{path.name}."
    while True:
        if directory:
            temporary = Path(tempfile.mkdtemp(prefix=prefix, suffix=suffix, dir=path.parent))
            try:
                descriptor = os.open(temporary, os.O_RDONLY)
            except FileNotFoundError:
                continue
        else:
            descriptor, name = tempfile.mkstemp(prefix=prefix, suffix=suffix, dir=path.parent)
            temporary = Path(name)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Between its making and its lock another process may have taken it for a leftover.
        if temporary.exists():
            return temporary, descriptor
        os.close(descriptor)


def _remove(temporary: Path) -> None:
    if temporary.is_dir():
        shutil.rmtree(temporary, ignore_errors=True)
    else:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file atomically."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, keys in the order given, so that equal values are equal bytes."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
