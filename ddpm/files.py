"""Files that are either whole or absent: temporary name, fsync, rename. And their hashes."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import errno
import fcntl
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

_CHUNK = 1 << 20
_MOST_JSON = 1 << 28
# Ends the name of the temporary that holds an old directory while it is being replaced.
_REPLACED = ".old.tmp"


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def combined_sha256(paths: Sequence[Path]) -> str:
    """The SHA-256 of a file; of several files, that of theirs."""
    hashes = [sha256_of(path) for path in paths]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()


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

    A symbolic link stays: what it points to is replaced. What killed processes left of such paths is removed too.
    """
    path = _followed(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(path, f".tmp{path.suffix}") as temporary:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    remove_leftovers(path.parent, path.name)


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory; when the block ends well it takes the place of `path`, else it is removed.

    At every instant `path` is the whole old directory or the whole new one. Only on a file system that cannot exchange
    two names (NFS) is there an instant with neither, between two renames: an error there puts the old one back, and
    after a kill there the next writer does. A symbolic link stays: what it points to is replaced. What killed processes
    left of such directories is removed too.
    """
    path = _followed(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent, path.name)
    with _temporary(path, ".tmp", directory=True) as temporary:
        yield temporary
        _open_private_files(temporary)
        _sync_tree(temporary)
        if not path.exists():
            temporary.replace(path)
        elif not exchange(temporary, path):
            _replace_in_two_steps(temporary, path)
        sync(path.parent)
    remove_leftovers(path.parent, path.name)


def _open_private_files(directory: Path) -> None:
    """Give files that a library made for their owner alone, as safetensors does, what the umask left the directory."""
    allowed = directory.stat().st_mode & 0o666
    for file in directory.rglob("*"):
        if not file.is_symlink() and file.is_file() and file.stat().st_mode & 0o777 == 0o600 != allowed:
            file.chmod(allowed)


def exchange(one: Path, other: Path) -> bool:
    """Give two existing paths each other's name in one atomic step; False where the system cannot.

    Raises:
        OSError: as for a rename.
    """
    at_fdcwd, rename_exchange = -100, 2
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    if renameat2(at_fdcwd, os.fsencode(one), at_fdcwd, os.fsencode(other), rename_exchange) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(one))


def _replace_in_two_steps(temporary: Path, path: Path) -> None:
    """Replace a directory by two renames; if anything comes between them, the old one is put back."""
    with _temporary(path, _REPLACED, directory=True) as replaced:
        try:
            path.replace(replaced / path.name)
            temporary.replace(path)
        finally:
            _put_back(replaced, path)


def _put_back(replaced: Path, path: Path) -> None:
    """Move a directory that was being replaced back to its name, if nothing has that name now."""
    if (replaced / path.name).exists() and not path.exists():
        (replaced / path.name).replace(path)


def _followed(path: Path) -> Path:
    """The path itself, or what it points to as a symbolic link."""
    return path.resolve() if path.is_symlink() else path


def remove_leftovers(directory: Path, name: str = "*") -> None:
    """Remove the temporaries of files and directories of that name whose process was killed.

    An old directory whose replacement was cut short is put back. A temporary that is being written is locked by its
    writer, and the kernel frees that lock when the writer ends. Where the file system has no such locks, nothing is
    removed.
    """
    pattern = name if name == "*" else glob.escape(name)
    for temporary in directory.glob(f".{pattern}.*.tmp*"):
        with contextlib.suppress(OSError):
            descriptor = os.open(temporary, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if temporary.name.endswith(_REPLACED):
                    for old in list(temporary.iterdir()):
                        _put_back(temporary, directory / old.name)
                _remove(temporary)
            finally:
                os.close(descriptor)


def process_directory(path: Path) -> Path:
    """A new directory beside `path` that lasts as long as this process; what killed processes left of such directories
    is removed.
    """
    remove_leftovers(path.parent, path.name)
    temporary, _ = _locked(path, ".tmp", directory=True)  # whose descriptor holds the lock until the process ends
    owner = os.getpid()
    atexit.register(lambda: _remove(temporary) if os.getpid() == owner else None)
    return temporary


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
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{suffix}")
        # Unlike those of `tempfile`, these have the permissions that the umask leaves.
        if directory:
            temporary.mkdir()
            try:
                descriptor = os.open(temporary, os.O_RDONLY)
            except FileNotFoundError:
                continue
        else:
            descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Between its making and its lock another process may have taken it for a leftover.
        if temporary.exists():
            return temporary, descriptor
        os.close(descriptor)


def meant(path: str | bytes | os.PathLike[str]) -> str:
    """The path of the file that a path's temporary is for; any other path as it is."""
    found = Path(os.fsdecode(path))
    name = re.sub(r"^\.(.+)\.[0-9a-f]{8}(\.old)?\.tmp.*$", r"\1", found.name)
    return str(found.with_name(name) if name else found)


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


def read_json(path: Path) -> dict[str, Any]:
    """The object that a file holds; all JSON files of this program are objects.

    Raises:
        ValueError: the file is not JSON or no object, is nested too deeply, or is far larger than any that this program
            writes.
    """
    if path.stat().st_size > _MOST_JSON:
        raise ValueError(f"expected JSON of at most {_MOST_JSON >> 20} MiB, found {path.stat().st_size >> 20} MiB")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError(f"expected an object, found {content!r:.50}")
    return content
