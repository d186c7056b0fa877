"""Work done ahead of its need, in a thread of its own."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Made = TypeVar("Made")


class Prefetch(Generic[Made]):
    """make(0), make(1), … by number: while one is used, the next ones are made. Any number may be asked for, again too.

    The thread ends when the object is no longer used.
    """

    def __init__(self, make: Callable[[int], Made], ahead: int, last: int) -> None:
        """
        Args:
            make: called by one thread, which raises to whoever asks for the number what it raises.
            ahead: how many are made before they are asked for; 0: none, and no thread.
            last: the number before which there are some.
        """
        self._make, self._ahead, self._last = make, ahead, last
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch") if ahead else None
        self._coming: dict[int, Future[Made]] = {}

    def __call__(self, number: int) -> Made:
        if self._pool is None:
            return self._make(number)
        wanted = range(number, min(number + self._ahead + 1, self._last))
        for other in self._coming.keys() - set(wanted):
            self._coming.pop(other).cancel()
        for each in wanted:
            if each not in self._coming:
                self._coming[each] = self._pool.submit(self._make, each)
        return self._coming.pop(number).result()
