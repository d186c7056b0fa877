"""How a long computation tells of its progress. What is shown of it, if anything, is decided by who asks for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

# Called with how many of the things that are counted were done since the last call.
Done = Callable[[int], object]
# Called with how many there are, their unit and a description: within the block, `Done` is to be called.
Show = Callable[[int, str, str], AbstractContextManager[Done]]


@contextlib.contextmanager
def unseen(total: int, unit: str, describe: str) -> Iterator[Done]:
    """A `Show` that shows nothing."""
    yield lambda count: None
