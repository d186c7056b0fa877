"""Progress bars, and leaving a long stage when asked to."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any

from numpy.typing import NDArray
from tqdm import tqdm

# Seconds between two drawings of a bar, and between two lines where stderr is no terminal.
TERMINAL_EVERY, LOG_EVERY = 0.5, 10.0
# Work of less than this many seconds shows no bar on a terminal.
SHORT = 1.0
# The rate is that of the last so many seconds, once it was measured over the second number of them.
RECENT, LEAST = 30.0, 1.0


class Bar(tqdm):
    """tqdm with the rate of the last seconds, which is unknown at first; it is drawn though nothing is done for long.

    The time until the end of the first update counts for no rate: it is that of imports and of the first allocations.
    """

    monitor_interval = 0  # tqdm's own thread, which is replaced by this one's

    def __init__(self, **options: Any) -> None:
        self._marks: deque[tuple[float, float]] = deque()  # (seconds, n) after updates
        self._latest = (0.0, 0.0)
        self._closed = threading.Event()
        super().__init__(**options)
        self._ticker = threading.Thread(target=self._tick, name="progress", daemon=True)
        if not self.disable:
            self._ticker.start()

    @property
    def format_dict(self) -> dict[str, Any]:
        """What is drawn; a rate of 0 is drawn as unknown, and with it the time left."""
        return {**super().format_dict, "rate": self.recent_rate()}

    def recent_rate(self) -> float:
        """Of what is counted, a second; 0 where it is not known yet."""
        if not self._marks:
            return 0.0
        seconds, done = (latest - first for latest, first in zip(self._latest, self._marks[0], strict=True))
        return done / seconds if seconds >= LEAST else 0.0

    def update(self, n: float | None = 1) -> bool | None:
        """Count n more."""
        if not self.disable:
            self._latest = (time.time(), self.n + (n or 0))
            if not self._marks or self._latest[0] - self._marks[-1][0] >= LEAST / 10:
                self._marks.append(self._latest)
            while len(self._marks) > 1 and self._marks[1][0] < self._latest[0] - RECENT:
                self._marks.popleft()
        return super().update(n)

    def move(self, n: float) -> None:
        """Go on from n, of which what was counted before is no part of the rate: after a resume, or back."""
        self.n = self.last_print_n = n
        self._marks.clear()

    def reach(self, n: float) -> None:
        """Count up to n."""
        self.update(n - self.n)

    def close(self) -> None:
        """Draw it a last time."""
        self._closed.set()
        if self._ticker.is_alive():
            self._ticker.join()
        super().close()

    def _tick(self) -> None:
        while not self._closed.wait(self.mininterval / 2):
            now = time.time()
            if now >= max(self.last_print_t + self.mininterval, self.start_t + (self.delay or 0)):
                with contextlib.suppress(OSError, ValueError):  # stderr is gone
                    self.refresh()
                self.last_print_t = now


class _Lines:
    """A stream that takes a bar's drawings, each of which begins at the left again, and writes each as a line."""

    encoding = getattr(sys.stderr, "encoding", None)

    def write(self, text: str) -> None:
        if drawing := text.strip("\r\n "):
            sys.stderr.write(f"{drawing}\n")

    def flush(self) -> None:
        sys.stderr.flush()


def bar(total: int | None, unit: str, describe: str, *, shown: bool = True) -> Bar:
    """A progress bar on stderr with rate and time left; where stderr is no terminal, a line every ten seconds.

    Args:
        total: how many there are; None: it is not known.
        unit: of what is counted, such as `img` or `steps`.
    """
    interactive = sys.stderr.isatty()
    every = TERMINAL_EVERY if interactive else LOG_EVERY
    return Bar(
        total=total,
        unit=f" {unit}",
        desc=describe,
        file=sys.stderr if interactive else _Lines(),
        unit_scale=total is None or total >= 10_000,
        mininterval=every,
        maxinterval=every,
        dynamic_ncols=interactive,
        ncols=None if interactive else 100,
        delay=SHORT if interactive else every,
        disable=not shown,
    )


@contextlib.contextmanager
def show(total: int, unit: str, describe: str) -> Iterator[Callable[[int], object]]:
    """`bar` as `ddpm.evaluation` asks for it."""
    with bar(total, unit, describe) as progress:
        yield progress.update


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Within the block SIGTERM and Ctrl-C raise a flag that the function yielded reads; a second one acts at once."""
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def counted(batches: Iterable[NDArray[Any]], progress: Bar) -> Iterator[NDArray[Any]]:
    """The batches as they are drawn; a bar moves on by the data of each."""
    for batch in batches:
        progress.update(len(batch))
        yield batch
