"""`ddpm fetch`: the upstream's published bytes → data/, in the version that data.dvc records."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from ddpm.config.data import DataConfig
from ddpm.config.params import Params
from ddpm.data.arrays import SEQUENCES
from ddpm.data.folder import Fingerprint, Listing, differences, files_of, listing, listing_of
from ddpm.data.sources import source_of
from ddpm.errors import UserError
from ddpm.files import atomic_directory, read_json, write_bytes, write_json
from ddpm.stages.progress import bar

DATA, RECORD, RECEIPT = "data", "data.dvc", "fetched.json"
REPLACED = Path(".ddpm", "replaced")
# The files of the recorded version with their hashes, of which data.dvc has only the hash of all.
LISTING = Path(".ddpm", "data.json")

_NO_DVC = "there is no DVC"


class Receipt(BaseModel):
    """fetched.json: what data/ holds. The pipeline's first output, from which `prepare` knows what it reads."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    name: str
    md5: str
    nfiles: int
    size: int

    @property
    def version(self) -> Fingerprint:
        return Fingerprint(md5=self.md5, size=self.size, nfiles=self.nfiles)

    @classmethod
    def read(cls, path: Path) -> Self:
        try:
            return cls.model_validate(read_json(path))
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; run `ddpm fetch`") from None
        except ValueError:  # pydantic's, json's and the decoder's
            raise UserError(f"{path}: damaged; run `ddpm fetch`") from None


class Record(BaseModel):
    """data.dvc: the version of data/, and in `meta` the source that it is of. Any other key is DVC's."""

    outs: tuple[Fingerprint]
    meta: dict[str, Any] | None = None

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The record, or None if there is none."""
        try:
            return cls.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValidationError, yaml.YAMLError, UnicodeDecodeError):
            raise UserError(f"{path}: not a record of one directory; remove it, then run `ddpm fetch`") from None

    def is_of(self, origin: dict[str, str]) -> bool:
        return self.meta is None or self.meta == origin

    @property
    def md5(self) -> str:
        return self.outs[0].md5


def fetch(params: Params, *, root: Path = Path(), accept: bool = False) -> None:
    """Bring data/ to the version that data.dvc records, and write the receipt fetched.json.

    What is there already is used; else the DVC cache and remote are asked, else the upstream, whose bytes must be those
    recorded. When params.yaml names another source than data.dvc, that is a new data set, which is fetched and
    recorded. Whatever fails, data/ is left as it was.

    Args:
        root: the project's folder.
        accept: fetch from the upstream and record whatever it has now as the new version.

    Raises:
        UserError: the upstream's bytes are not those recorded, or params.yaml names a folder without files.
        UpstreamError: a download failed.
    """
    config, data = params.data, root / DATA
    origin = _origin(config)
    record = Record.read(root / RECORD)
    if record and not record.is_of(origin):
        record = None
    if config.path is not None:
        _check_apart(root / Path(config.path).expanduser(), data)
    found = None
    if record and not accept:
        _check_folder_unchanged(config, root, record)
        found = _already_there(data, record) or _from_dvc(root, record)
    if found:
        said = f"as {RECORD} records"
    else:
        found = _from_upstream(config, root, None if accept else record)
        said = f"fetched, as {RECORD} records"
        if record is None or record.md5 != found.fingerprint.md5:
            _write_record(root / RECORD, found.fingerprint, origin)
            said = f"a new version, recorded in {RECORD}"
        _cache(root)
    _write_listing(root, found)
    version = found.fingerprint
    receipt = Receipt(source=config.source, name=config.dataset_name, **version.model_dump())
    write_json(root / RECEIPT, receipt.model_dump())
    print(f"{DATA}/: {receipt.name}, {_amount(version)}; {said}")


def _hashed(folder: Path, *, hidden: bool = True) -> Listing:
    """`listing` with its progress."""
    with bar(None, "files", f"hashing {folder}") as progress:
        return listing(folder, hidden=hidden, on_file=progress.update)


def _amount(found: Fingerprint) -> str:
    return f"{found.nfiles} file{'s' * (found.nfiles != 1)}, {found.size} bytes"


def _origin(config: DataConfig) -> dict[str, str]:
    """What data.dvc notes about where the data are from."""
    return {"source": config.source} | ({"path": config.path} if config.path is not None else {})


def _check_apart(folder: Path, data: Path) -> None:
    """data/ is a copy, so it cannot be of itself."""
    here, there = folder.resolve(), data.resolve()
    if here.is_relative_to(there) or there.is_relative_to(here):
        raise UserError(f"data.path: {folder} and {data} lie in one another; keep your images in a folder of their own")


def _check_folder_unchanged(config: DataConfig, root: Path, record: Record) -> None:
    """A folder or file can be asked at once whether it is still what was recorded; if gone, it may be in the cache."""
    if config.path is None:
        return
    folder = root / Path(config.path).expanduser()
    if config.source == "sequences" and folder.is_file():
        _check_recorded(listing_of({SEQUENCES: folder}), record, f"data.path: {folder}", root)
    elif folder.is_dir():
        _check_recorded(_hashed(folder, hidden=False), record, f"data.path: {folder}", root)


def _check_recorded(found: Listing, record: Record, where: str, root: Path) -> None:
    if found.fingerprint.md5 != record.md5:
        raise UserError(
            f"{where} has changed since {RECORD} recorded it: {changes(found, record.outs[0], root)}; "
            "`ddpm fetch --accept` records the new version"
        )


def changes(found: Listing, recorded: Fingerprint, root: Path) -> str:
    """In which files what was found differs from a recorded version; in numbers, where nothing here lists its files."""
    in_cache = root / ".dvc/cache/files/md5" / recorded.md5[:2] / recorded.md5[2:]
    for path in (root / LISTING, in_cache):
        try:
            content = path.read_bytes()
        except OSError:
            continue
        if hashlib.md5(content, usedforsecurity=False).hexdigest() == recorded.md5.removesuffix(".dir"):
            return differences(files_of(content), found.files)
    now = found.fingerprint
    return f"found {now.md5} of {_amount(now)}, recorded is {recorded.md5} of {_amount(recorded)}"


def _write_listing(root: Path, found: Listing) -> None:
    content, path = found.as_dvc(), root / LISTING
    if not path.is_file() or path.read_bytes() != content:
        write_bytes(path, content)


def _already_there(data: Path, record: Record) -> Listing | None:
    """The files in data/, if they are the version recorded."""
    found = _hashed(data) if data.is_dir() else None
    return found if found and found.fingerprint.md5 == record.md5 else None


def _from_dvc(root: Path, record: Record) -> Listing | None:
    """Have DVC restore data/ from its cache, else from the remote. It refuses to overwrite what it does not know."""
    if _dvc(root, "pull", RECORD) is not None:
        return None
    return _already_there(root / DATA, record)


def _cache(root: Path) -> None:
    """Put data/ into DVC's cache, so that `dvc push` has it. The record is the same that DVC would write."""
    reason = _dvc(root, "add", DATA)
    if reason and reason != _NO_DVC:
        print(f"warning: `dvc push` will not send {DATA}/, which DVC could not add: {reason}", file=sys.stderr)


def _dvc(root: Path, *arguments: str) -> str | None:
    """Run a dvc command in the project. Returns None if it succeeded, else why it did not, in one line."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    executable = shutil.which("dvc", path=path)
    if executable is None or not (root / ".dvc").is_dir():
        return _NO_DVC
    # Waiting matters: other stages of the same pipeline hold the lock for an instant each.
    done = subprocess.run(
        [executable, "--wait-for-lock", *arguments],
        cwd=root,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode == 0:
        return None
    lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    said = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")] or lines
    return said[0] if said else f"dvc ended with {done.returncode}"


def _from_upstream(config: DataConfig, root: Path, record: Record | None) -> Listing:
    """Fetch into a directory beside data/, check it, and put it in data/'s place."""
    data = root / DATA
    with atomic_directory(data) as fresh:
        source_of(config, root).fetch(fresh)
        found = _hashed(fresh)
        if record:
            _check_recorded(found, record, f"the upstream of data.source: {config.source}", root)
        _set_aside_unrecorded(root, found)
    return found


def _set_aside_unrecorded(root: Path, fresh: Listing) -> None:
    """Keep a data/ that is about to be replaced and is of no recorded version: nobody else may have those bytes.

    One such version is kept, the latest.
    """
    data, record = root / DATA, Record.read(root / RECORD)
    if not data.is_dir():
        return
    found = _hashed(data)
    known = {fresh.fingerprint.md5, *([record.md5] if record else [])}
    if not found.files or found.fingerprint.md5 in known:
        return
    why = f": {changes(found, record.outs[0], root)}" if record else ""
    aside = root / REPLACED / found.fingerprint.md5
    if not aside.exists():
        aside.parent.mkdir(parents=True, exist_ok=True)
        # Of a link, the folder that it points to moves, which may be to another file system.
        shutil.move(data.resolve(), aside)
    print(
        f"{DATA}/ was of no recorded version{why}; it was moved to {_below(aside, root)}, {_amount(found.fingerprint)}"
    )
    for older in aside.parent.iterdir():
        if older != aside:
            shutil.rmtree(older)
            print(f"{_below(older, root)}, replaced before, was removed: the latest one is kept")


def _below(path: Path, root: Path) -> Path:
    return path.relative_to(root)


def _write_record(path: Path, found: Fingerprint, origin: dict[str, str]) -> None:
    record = {"outs": [{**found.model_dump(), "hash": "md5", "path": DATA}], "meta": origin}
    write_bytes(path, yaml.safe_dump(record, sort_keys=False, allow_unicode=True).encode())
