"""Whom flows/prefect_server.py lets pass; that Prefect's own server stands behind it, test_serve.py shows."""

import asyncio

import pytest
from starlette.responses import PlainTextResponse

from flows.prefect_server import OwnPagesOnly

HOSTS = ["127.0.0.1:4200", "localhost:4200", "ddpm.example"]


@pytest.mark.parametrize(
    ("host", "origin", "passes"),
    [
        ("127.0.0.1:4200", None, True),
        ("LOCALHOST:4200", None, True),
        ("127.0.0.1:4200", "http://127.0.0.1:4200", True),
        ("127.0.0.1:4200", "http://localhost:4200", True),
        ("ddpm.example", "https://ddpm.example", True),
        ("127.0.0.1:4200", "http://evil.example", False),
        ("127.0.0.1:4200", "http://127.0.0.1:4201", False),
        ("127.0.0.1:4200", "http://127.0.0.1:4200.evil.example", False),
        ("127.0.0.1:4200", "null", False),
        ("127.0.0.1:4200", "", False),
        ("evil.example", None, False),
        ("evil.example:4200", "http://evil.example:4200", False),
        ("127.0.0.1", None, False),
        ("127.0.0.1:4200, evil.example", None, False),
        ("", None, False),
        (None, None, False),
    ],
)
@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_a_request_passes_under_an_own_name_and_from_an_own_page(kind, host, origin, passes):
    headers = [(name, value.encode()) for name, value in ((b"host", host), (b"origin", origin)) if value is not None]
    scope = {"type": kind, "method": "GET", "path": "/", "headers": headers, "extensions": RESPONSE}
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(OwnPagesOnly(PlainTextResponse("passed"), HOSTS)(scope, None, send))
    assert sent[0]["status"] == (200 if passes else 403)


def test_two_host_headers_are_one_too_many():
    scope = {"type": "http", "headers": [(b"host", b"127.0.0.1:4200"), (b"host", b"evil.example")]}
    assert OwnPagesOnly(PlainTextResponse("passed"), HOSTS)._refusal(scope)


RESPONSE = {"websocket.http.response": {}}
