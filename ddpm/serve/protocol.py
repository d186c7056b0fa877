"""Bounds on what comes before there is a request."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


def http_within(seconds: float) -> type[asyncio.Protocol]:
    """uvicorn's HTTP/1.1, but closing a connection whose next head is not there in time.

    uvicorn itself gives a connection as long as it likes for its first head, and for each one that it has begun.

    Args:
        seconds: from the connection, or from the first byte after an answer, to the end of a request's head.
    """

    class PromptHeads(H11Protocol):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._relax()

        def _watch(self) -> None:
            """See to it that time runs exactly while no request is being answered."""
            if self.cycle is not None and not self.cycle.response_complete:
                self._relax()
            elif self._late is None:
                self._late = self.loop.call_later(seconds, self.transport.close)

        def _relax(self) -> None:
            if self._late is not None:
                self._late.cancel()
                self._late = None

    return PromptHeads
