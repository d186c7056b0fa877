"""Around every request: an identifier, bounds on its body, a line in the log, figures.

Plain ASGI: what starlette offers for middleware hides from the application that its client has left.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ddpm.serve.metrics import Metrics
from ddpm.serve.settings import Settings

logger = logging.getLogger(__name__)

# A client's own identifier, if it can stand in a log and in a header.
_ID = re.compile(r"[\w.:-]{1,64}", flags=re.ASCII)

# Asked every few seconds by machines; a line in the log only when refused.
_QUIET = frozenset({"/health", "/ready", "/metrics"})

# nginx's status for an answer that nobody waited for.
CLIENT_LEFT = 499

# A body that is too long is read to its end, up to this many times the bound, before it is refused: a connection that
# is closed on a client still sending may take the answer with it.
_PATIENCE = 4


class ClientLeftError(Exception):
    """The connection was closed before the answer was there."""


class _RefusedError(Exception):
    """The body is not taken: status and reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Envelope:
    """Wraps the application; `active` counts the requests it is at work on."""

    def __init__(self, app: ASGIApp, metrics: Metrics, settings: Settings, paths: frozenset[str]) -> None:
        """
        Args:
            app: what is wrapped.
            metrics: what counts the requests.
            settings: the bounds on a body's bytes and seconds.
            paths: those that there are; any other counts as `other`.
        """
        self.active = 0
        self.closing = False
        """Whether connections are to end with their next answer."""
        self._app, self._metrics, self._settings, self._paths = app, metrics, settings, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        exchange = _Exchange(scope, send, self)
        self.active += 1
        try:
            self._check_host(exchange.headers)
            body = await self._body(exchange.headers, receive)
            await self._app(scope, _replay(body, receive), exchange.send)
        except ClientLeftError:
            exchange.status = CLIENT_LEFT
        except _RefusedError as refusal:
            await exchange.answer(refusal.status, str(refusal))
        except Exception:
            logger.exception("a request failed", extra={"fields": {"id": exchange.id}})
        finally:
            self.active -= 1
            self._record(exchange, time.monotonic() - started)

    def _check_host(self, headers: Headers) -> None:
        """Refuse a name that is not the service's: that of a page which makes it resolve to this machine."""
        names, host = self._settings.allowed_hosts, headers.get("host", "")
        if names and "*" not in names and re.sub(r":\d*$", "", host).lower().strip("[]") not in names:
            raise _RefusedError(403, f"Host {host[:200]!r} is not allowed; to allow it: --allowed-hosts")

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        """The whole body, if it is within its bounds."""
        most = self._settings.max_body
        too_long = _RefusedError(413, f"the body must have at most {most} bytes")
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > most and headers.get("expect", "").lower() == "100-continue":
            raise too_long  # this client waits for our word before it sends
        body, size, more = bytearray(), 0, True
        try:
            async with asyncio.timeout(self._settings.body_seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientLeftError
                    size += len(message.get("body", b""))
                    more = message.get("more_body", False) and size <= most * _PATIENCE
                    if size <= most:
                        body += message.get("body", b"")
        except TimeoutError:
            raise _RefusedError(408, f"the body took longer than {self._settings.body_seconds:g} s") from None
        if size > most:
            raise too_long
        return bytes(body)

    def _record(self, exchange: _Exchange, seconds: float) -> None:
        known = exchange.path in self._paths
        path = exchange.path if known else "other"
        self._metrics.requests.labels(path, exchange.status).inc()
        self._metrics.request_seconds.labels(path).observe(seconds)
        if exchange.path in _QUIET and exchange.status < 400:
            return
        fields = {
            "id": exchange.id,
            "client": exchange.client,
            "method": exchange.method,
            "path": exchange.path[:200],
            "status": exchange.status,
            "seconds": round(seconds, 4),
            **exchange.notes,
        }
        logger.info("request", extra={"fields": fields})


class _Exchange:
    """One request and what has been answered to it."""

    def __init__(self, scope: Scope, send: Send, envelope: Envelope) -> None:
        self.headers = Headers(scope=scope)
        self.method, self.path = scope["method"], scope["path"]
        self.client = (scope.get("client") or ("",))[0]
        given = self.headers.get("x-request-id", "")
        self.id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        self.status = 500
        # What the application wants in the request's line of the log.
        self.notes: dict[str, Any] = {}
        scope.setdefault("state", {}).update(request_id=self.id, notes=self.notes)
        self._send, self._envelope = send, envelope

    async def send(self, message: Message) -> None:
        """Pass a message of the answer on, its head with our own lines."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = self.id
            headers["X-Content-Type-Options"] = "nosniff"
            if self._envelope.closing:
                headers["Connection"] = "close"
        await self._send(message)

    async def answer(self, status: int, reason: str) -> None:
        """Answer in one line, in the application's stead."""
        body = json.dumps({"detail": reason, "request_id": self.id}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})


def _replay(body: bytes, receive: Receive) -> Receive:
    """A body that was read already, then whatever comes after it."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed
