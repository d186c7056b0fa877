"""Folders as diffusers' and transformers' `save_pretrained` writes them: a configuration, and weights in one file or in
numbered parts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ddpm.errors import UserError
from ddpm.files import read_json
from ddpm.interop.published import in_short, must_be_a_file, read_saved, tensors_alone

MOST_BYTES = 1 << 26  # of a configuration or an index
# The names of the files of weights, by their endings.
DIFFUSERS = {".safetensors": "diffusion_pytorch_model", ".bin": "diffusion_pytorch_model"}
TRANSFORMERS = {".safetensors": "model", ".bin": "pytorch_model"}
_PART = re.compile(r"-\d+-of-\d+\.")


def weights_in(folder: Path, stems: Mapping[str, str]) -> tuple[Path, ...]:
    """The files of the weights, with the index first where they are in parts: safetensors if they are there, else
    pickled, and of a variant such as fp16 if there are no others.

    Args:
        stems: `DIFFUSERS` or `TRANSFORMERS`.

    Raises:
        UserError: there are no weights, or those of more than one variant.
    """
    for suffix, stem in stems.items():
        single = [path for path in folder.glob(f"{stem}*{suffix}") if not _PART.search(path.name)]
        indices = [path for path in folder.glob(f"{stem}*.json") if suffix in path.suffixes]
        plain = [path for path in single if path.name == f"{stem}{suffix}"]
        plain += [path for path in indices if path.name == f"{stem}{suffix}.index.json"]
        found = plain[:1] or sorted(single + indices)
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise UserError(f"{folder}: has weights of several variants: {names}; leave one of them there")
        if found:
            return found[0], *_parts(found[0], stem)
    expected = f"{stems['.safetensors']}.safetensors"
    raise UserError(f"{folder}: no weights; expected {expected}, as save_pretrained writes it")


def _parts(index: Path, stem: str) -> list[Path]:
    """The files that an index of weights names, in its own folder."""
    if index.suffix != ".json":
        return []
    named = read_config(index).get("weight_map")
    plain = isinstance(named, dict) and all(_is_plain(name, stem) for name in named.values())
    if not (plain and named):
        raise UserError(f"{index}: damaged: expected a `weight_map` of names and files in the same folder")
    return [index.parent / name for name in sorted(set(named.values()))]


def _is_plain(name: Any, stem: str) -> bool:
    return isinstance(name, str) and name.startswith(stem) and "/" not in name and "\\" not in name


def read_weights(files: tuple[Path, ...]) -> dict[str, Tensor]:
    """The tensors of files that `weights_in` found, by their names.

    Raises:
        UserError: one is missing or damaged, or holds anything but tensors.
    """
    weights: dict[str, Tensor] = {}
    for path in files:
        if path.suffix != ".json":
            weights |= tensors_alone(read_saved(path), str(path))
    return weights


def read_config(path: Path) -> dict[str, Any]:
    """
    Raises:
        UserError: the file is missing, damaged or too long.
    """
    try:
        if not path.exists():
            raise FileNotFoundError
        must_be_a_file(path)
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"longer than {MOST_BYTES:,} bytes")
        return read_json(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected a directory as diffusers' save_pretrained writes it") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged: {in_short(error)}") from None
