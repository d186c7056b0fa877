"""States of a training run: whole or absent, checked by hash, and no pickle."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ddpm.errors import UpstreamError, UserError
from ddpm.files import atomic_directory, read_json, remove_leftovers, sha256_of, write_json

KEPT = 2  # the newest may turn out damaged; the one before it then serves


class Checkpoints:
    """A directory of states, one directory a step: `state.safetensors` and `state.json` with its SHA-256."""

    def __init__(self, directory: Path, say: Callable[[str], None] = print) -> None:
        self.directory = directory
        self._say = say

    def save(self, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Write the state after `step` steps, then drop all but the newest ones.

        Raises:
            UpstreamError: it cannot be written, as on a full disk; the older ones are as they were.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        path = self.directory / f"step-{step:09d}"
        try:
            with atomic_directory(path) as temporary:
                save_file(
                    {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
                    temporary / "state.safetensors",
                )
                write_json(
                    temporary / "state.json",
                    {"step": step, "sha256": sha256_of(temporary / "state.safetensors"), "facts": dict(facts)},
                )
        except (OSError, SafetensorError) as error:
            whole = self._newest_first()
            kept = f"the same command continues from {whole[0].name}" if whole else "there is none before it"
            raise UpstreamError(f"the checkpoint {path} cannot be written ({error}); {kept}") from None
        for old in self._newest_first()[KEPT:]:
            shutil.rmtree(old)

    def latest(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest whole state, or None. A damaged one is said and passed over."""
        from safetensors.torch import load_file

        for path in self._newest_first():
            try:
                described = read_json(path / "state.json")
                if sha256_of(path / "state.safetensors") != described["sha256"]:
                    raise ValueError("its bytes do not have the recorded SHA-256")
                return load_file(path / "state.safetensors"), {**described["facts"], "step": described["step"]}
            except (OSError, ValueError, KeyError, TypeError) as error:  # of JSON that is no state's description too
                self._say(f"checkpoint {path} is damaged ({error}); trying the one before it")
        return None

    def any(self) -> bool:
        """Whether there is a state to continue from."""
        return bool(self._newest_first())

    def others(self) -> list[Checkpoints]:
        """The directories beside this one that have states, of runs that decided otherwise; the latest first."""
        beside = [Checkpoints(path, self._say) for path in self.directory.parent.iterdir() if path != self.directory]
        return sorted((other for other in beside if other.any()), key=_age)

    def discard_others(self) -> None:
        """Remove the directories beside this one."""
        for other in self.directory.parent.iterdir():
            if other.is_dir() and other != self.directory:
                shutil.rmtree(other)

    def clean(self) -> None:
        """Remove what killed writers left in this directory."""
        remove_leftovers(self.directory)

    def _newest_first(self) -> list[Path]:
        return sorted(self.directory.glob("step-*"), reverse=True)


def _age(checkpoints: Checkpoints) -> float:
    return -checkpoints.directory.stat().st_mtime


@contextlib.contextmanager
def exclusive(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file against a second process.

    Raises:
        UserError: another process holds it; the message names it and what it is doing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise UserError(f"process {lock.read().strip() or 'unknown'} {what}; wait for it or stop it") from None
        lock.truncate(0)
        lock.write(f"{os.getpid()} on {socket.gethostname()}")
        lock.flush()
        yield
