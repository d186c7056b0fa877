"""A column of captions that are already numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Words:
    """Stands for a tokenizer: how many ids there are, and which of them is padding."""

    size: int
    padding: int = 0


@dataclass(frozen=True)
class Prompt:
    """As `PromptColumn`, without the words."""

    tokenizer: Words
    shape: tuple[int, ...]
    name = key = "prompt"
    dtype = np.dtype(np.int64)

    @property
    def null(self) -> int:
        return self.tokenizer.padding
