"""A batch in parts that fit into memory."""

from __future__ import annotations

from collections.abc import Iterator


class OutOfMemoryError(Exception):
    """So many data at once do not fit into the device's memory."""

    def __init__(self, at_once: int) -> None:
        super().__init__(f"out of memory with {at_once} of a batch at once")
        self.at_once = at_once


def micro_batches(count: int, at_once: int) -> Iterator[slice]:
    """The rows 0 .. count − 1 in order, at most `at_once` at a time."""
    for first in range(0, count, at_once):
        yield slice(first, min(first + at_once, count))
