"""Files of weights as torch and safetensors write them, read without running what is in them."""

from __future__ import annotations

import contextlib
import pickletools
import re
import stat
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from ddpm.errors import UserError


def read_saved(path: Path) -> dict[str, Any]:
    """What a `.safetensors` file holds, or a `.pt` or `.bin` pickle, of which only tensors and plain values are loaded.

    No more memory is taken than the file is long. The names are without what wrappers put before them.

    Raises:
        UserError: the file is missing, damaged, or holds code or no dictionary.
    """
    must_be_a_file(path)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return unwrapped(load_file(path))
        _refuse_bombs(path)
        with warnings.catch_warnings(action="ignore"):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except SafetensorError as error:
        raise UserError(f"{path}: damaged or cut short: {in_short(error)}") from None
    except Exception as error:  # of pickle, of zipfile, or torch's own
        # torch's message is long, and advises to run what is in the file.
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if code:
            raise UserError(
                f"{path}: holds the Python object {code[1]:.60}, not tensors and plain values alone, and is not "
                "loaded; save the network's state_dict()"
            ) from None
        raise UserError(f"{path}: damaged or cut short ({in_short(error)})") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected a dictionary of tensors, found {type(found).__name__}")
    return unwrapped(found)


def must_be_a_file(path: Path) -> None:
    """
    Raises:
        UserError: there is none, or it is a directory, a pipe or a device, which may have no end.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise UserError(f"{path}: {reason}") from None
    if not stat.S_ISREG(mode):
        what = "a directory" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise UserError(f"{path}: expected a file of weights, found {what}")


def _refuse_bombs(path: Path) -> None:
    """torch.save compresses nothing, and a state_dict has no byte array, of which a pickle names just the length.

    Raises:
        UserError: the file would take far more memory than it is long.
    """
    size = path.stat().st_size
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > size:
                raise UserError(f"{path}: its parts are longer than the file; torch.save writes no such file")
            for member in members:
                if member.filename.endswith("data.pkl"):
                    with archive.open(member) as stream:
                        _refuse_byte_arrays(stream, path)
        return
    with path.open("rb") as stream:
        for _ in range(4):  # the older format: a magic number, a version, the machine, and then the object
            _refuse_byte_arrays(stream, path)


def _refuse_byte_arrays(pickled: IO[bytes], path: Path) -> None:
    words = (argument for _, argument, _ in pickletools.genops(pickled) if isinstance(argument, str))
    # What is no pickle is left for torch to refuse.
    with contextlib.suppress(ValueError):
        if any("bytearray" in word and len(word) < 40 for word in words):
            raise UserError(f"{path}: holds a byte array; expected tensors and plain values alone")


def unwrapped(found: Mapping[str, Any]) -> dict[str, Any]:
    """Names without what DataParallel (`module.`) and torch.compile (`_orig_mod.`) put into them."""
    plain = {
        re.sub(r"(?:(?<=\.)|^)(?:(?:module|_orig_mod)\.)+", "", name) if isinstance(name, str) else name: value
        for name, value in found.items()
    }
    return plain if len(plain) == len(found) else dict(found)


def tensors_alone(found: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    """What was read, as a network's state_dict.

    Raises:
        UserError: it holds anything but tensors by name, or tensors larger than the numbers that are stored of them.
    """
    stored, wanted = {}, 0
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(f"{where}: expected tensors by name, a network's state_dict; {name!r:.80} is none")
        if value.layout is not torch.strided or value.is_quantized or value.is_nested or value.device.type != "cpu":
            raise UserError(f"{where}: {shown(name)} is no plain tensor but sparse, quantised or without numbers")
        storage = value.untyped_storage()
        stored[storage.data_ptr()] = storage.nbytes()
        wanted += value.numel() * value.element_size()
    # A stride of 0 repeats a few numbers as often as a shape says.
    if wanted > sum(stored.values()):
        raise UserError(
            f"{where}: its tensors have {wanted:,} bytes, of which {sum(stored.values()):,} are stored; "
            "expected all of them"
        )
    return unwrapped(found)


def in_short(error: Exception) -> str:
    """Another's error in one line: its first sentence."""
    return " ".join(f"{type(error).__name__}: {_reason(error)}".split()).split(". ")[0][:160]


def _reason(error: Exception) -> str:
    """What an error says, without what torch has before it: how to run the code that a file may hold."""
    return str(error).rpartition("WeightsUnpickler error:")[2]


def shown(name: str) -> str:
    """A name out of a file, fit for a line of an error."""
    return name if name.isprintable() and len(name) <= 80 else f"{name!r:.80}"
