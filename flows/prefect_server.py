"""Prefect's server, closed to the pages of other sites.

`python prefect_server.py --port 4200 --allowed-hosts 127.0.0.1:4200,localhost:4200` does what `prefect server start`
does. But whoever may create a flow run decides what a worker runs, and Prefect's server takes requests under any name
and from any web page. This one refuses a request

- whose `Host` is not among the allowed ones: a page that makes its own name resolve to this machine (DNS rebinding);
- whose `Origin` is of another site: a page that posts to this address, or opens a WebSocket;
- that changes something without a CSRF token, which Prefect's clients and pages fetch by themselves.

Needs nothing of this project, so that the servers' image holds this one file.
"""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send


class OwnPagesOnly:
    """Passes on only what was sent under an allowed name, by a program or by a page of the same name."""

    def __init__(self, app: ASGIApp, allowed_hosts: list[str]) -> None:
        """
        Args:
            app: the application.
            allowed_hosts: values of `Host`: a name, with its port unless that is the scheme's own.
        """
        self._app = app
        self._hosts = {host.lower() for host in allowed_hosts}
        self._origins = set(origins(allowed_hosts))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket") and (reason := self._refusal(scope)):
            from starlette.responses import PlainTextResponse

            # To a WebSocket's request too: starlette then refuses the handshake.
            await PlainTextResponse(reason, status_code=403)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> str | None:
        """Why the request is refused, if it is."""
        host = [value for name, value in scope["headers"] if name == b"host"]
        if len(host) != 1 or host[0].decode("latin-1").lower() not in self._hosts:
            return "the Host header is not one of --allowed-hosts\n"
        origin = [value for name, value in scope["headers"] if name == b"origin"]
        if any(value.decode("latin-1").lower() not in self._origins for value in origin):
            return "requests from pages of other sites are refused\n"
        return None


def origins(hosts: list[str]) -> list[str]:
    """What a browser calls the pages under these names; https where a proxy in front speaks it."""
    return [f"{scheme}://{host.lower()}" for host in hosts for scheme in ("http", "https")]


def main() -> None:
    parser = argparse.ArgumentParser(description="Prefect's server, closed to the pages of other sites.")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=4200, help="(default: %(default)s)")
    parser.add_argument(
        "--allowed-hosts",
        required=True,
        metavar="NAME:PORT,…",
        help="the names under which browsers and clients reach the server; the first is the one of its pages",
    )
    given = parser.parse_args()
    hosts = [host.strip() for host in given.allowed_hosts.split(",") if host.strip()]
    if not hosts:
        parser.error("--allowed-hosts: expected a name such as 127.0.0.1:4200")

    # Prefect reads its settings when it is imported.
    os.environ["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] = ",".join(origins(hosts))
    os.environ["PREFECT_SERVER_CSRF_PROTECTION_ENABLED"] = "true"
    # Where the pages find the API.
    os.environ.setdefault("PREFECT_SERVER_UI_API_URL", f"http://{hosts[0]}/api")
    if not os.environ.get("PREFECT_SERVER_API_AUTH_STRING"):
        # Prefect would take an empty string for the password.
        os.environ.pop("PREFECT_SERVER_API_AUTH_STRING", None)
    import uvicorn
    from prefect.server.api.server import create_app

    uvicorn.run(
        OwnPagesOnly(create_app(final=True), hosts),
        host=given.host,
        port=given.port,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        # Streams of events are open for as long as a page is.
        timeout_graceful_shutdown=5,
    )


if __name__ == "__main__":
    main()
