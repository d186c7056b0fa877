"""The process of a service: its socket, its signals, its end."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from dataclasses import replace
from types import FrameType

import uvicorn

from ddpm.errors import UserError
from ddpm.serve.app import Service
from ddpm.serve.logs import log_as_json_lines
from ddpm.serve.protocol import http_within
from ddpm.serve.settings import Settings

logger = logging.getLogger(__name__)

# For answers that are written to slow readers when all is drawn.
_LAST_BYTES_SECONDS = 5


def serve(model: str, host: str, port: int, settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, and then until what was accepted is done or the grace is over; in that case, or
    where a batch that nobody waits for is under way, the process ends here.

    Raises:
        UserError: the address cannot be used, or there is no such model.
        UpstreamError: the registry does not answer.
    """
    log_as_json_lines()
    settings = replace(settings, allowed_hosts=settings.allowed_hosts or _own_names(host))
    listener = _listen(host, port)
    address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    server = _Server(model, settings, f"{address} serves {model}; Ctrl-C stops it")
    server.run(sockets=[listener])
    if server.failure:
        raise server.failure


def _own_names(host: str) -> tuple[str, ...]:
    """The names of a service that only this machine reaches.

    Another name in a request's Host is that of a web page that resolves it to this machine to read the answers.
    """
    names = ("localhost", "127.0.0.1", "::1")
    return (*names, host.lower()) if host in names or host.startswith("127.") else ("*",)


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"--host {host} --port {port} cannot be listened on: {reason}") from None


class _Server(uvicorn.Server):
    """uvicorn, but before it stops it refuses new requests, aloud, until the accepted ones are done."""

    def __init__(self, model: str, settings: Settings, announcement: str) -> None:
        """
        Args:
            announcement: printed once the model is loaded and requests are answered.
        """
        self._announcement = announcement
        self.failure: Exception | None = None
        self._refused = False
        self._service = Service(model, settings, on_failure=self._fail)
        self._grace = settings.grace
        # When the grace is over; None: it is not to stop.
        self._deadline: float | None = None
        super().__init__(
            uvicorn.Config(
                self._service.envelope,
                http=http_within(settings.body_seconds),
                loop="asyncio",
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=_LAST_BYTES_SECONDS,
            )
        )

    def _fail(self, error: Exception) -> None:
        self.failure = error
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal begins the end; a second one does not wait for it."""
        now = time.monotonic()
        self._deadline = now + self._grace if self._deadline is None else now

    async def on_tick(self, counter: int) -> bool:
        """uvicorn's own heartbeat, ten times a second."""
        if self._announcement and self._service.keeper.current is not None:
            print(self._announcement, flush=True)
            self._announcement = ""
        if self._deadline is not None and not self.should_exit:
            if not self._service.stopping:
                self._service.stop()
                logger.info("stopping", extra={"fields": {"active": self._service.envelope.active}})
            over, idle = time.monotonic() >= self._deadline, not self._service.envelope.active
            if over and not idle:
                self._refused = True
                self._service.abandon()
            self.should_exit = over or idle
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's end of all connections; then the process's, if it has threads that nobody waits for any more."""
        drawing = self._service.batcher.busy
        await super().shutdown(sockets)
        if drawing or self._refused:
            # They cannot be stopped midway, and Python would wait for them, deaf to further signals.
            logging.shutdown()
            sys.stdout.flush()
            os._exit(int(self._refused))
