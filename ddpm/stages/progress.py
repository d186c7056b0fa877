"""Progress bars, and leaving a long stage when asked to."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType

from tqdm import tqdm


def bar(total: int, unit: str, describe: str, *, shown: bool = True) -> tqdm:
    """A progress bar on stderr with rate and time left; refreshed seldom where stderr is no terminal."""
    interactive = sys.stderr.isatty()
    return tqdm(
        total=total,
        unit=unit,
        desc=describe,
        unit_scale=True,
        mininterval=0.5 if interactive else 10.0,
        maxinterval=10.0,
        dynamic_ncols=interactive,
        ncols=None if interactive else 100,
        smoothing=0.1,
        delay=1.0,
        disable=not shown,
    )


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
