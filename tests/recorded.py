"""Comparisons with published implementations. `python -m bench.imports` collects what they find for docs/imports.md."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

RECORD = "DDPM_RECORD"  # names a file: a line of JSON for each comparison


def assert_equal(found: Tensor, expected: Tensor, what: str, bound: float = 1e-5) -> None:
    """The norm of the difference is at most so large a share of the norm of what is expected.

    Args:
        what: is compared, a row of docs/imports.md.
    """
    assert found.shape == expected.shape
    difference = float((found - expected).norm() / expected.norm())
    _record(what, difference=difference, bound=bound)
    assert difference <= bound


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> None:
    """Tensors of the same names, equal to the bit."""
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    _record(what, difference=0.0, bound=0.0)


def assert_parameters(network: nn.Module, expected: int, what: str) -> None:
    """As many parameters as the published network has."""
    assert sum(parameter.numel() for parameter in network.parameters()) == expected
    _record(what, parameters=expected)


def _record(what: str, **found: Any) -> None:
    if path := os.environ.get(RECORD):
        with Path(path).open("a", encoding="utf-8") as stream:
            print(json.dumps({"what": what, **found}), file=stream)
