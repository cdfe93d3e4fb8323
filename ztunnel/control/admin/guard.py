"""Who may speak to the admin port: tools on this machine, not web pages that a browser on it was led to.

A page can make a browser send requests to 127.0.0.1, directly or by a name of its own that it rebinds to loopback.
So the Host must be an IP address or a localhost name (rebinding needs a name of its own), and an Origin, which only
browsers send, must be one of those too.
"""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

REFUSED = "refused: the admin port answers requests addressed to an IP address or localhost, and no web pages\n"


class LocalOnly:
    """ASGI middleware; what is refused gets 403."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _is_local(Headers(scope=scope)):
            await PlainTextResponse(REFUSED, 403)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _is_local(headers: Headers) -> bool:
    hosts = headers.getlist("host")
    if len(hosts) > 1 or any(not is_local_host(host) for host in hosts):
        return False
    return all(is_local_host(_host_of(origin)) for origin in headers.getlist("origin"))


def is_local_host(host: str) -> bool:
    """Whether `name[:port]`, `v4[:port]` or `[v6][:port]` is an IP address or a localhost name (RFC 6761, 6.3)."""
    name, colon, port = host.rpartition(":")
    if not colon or not port.isdigit():
        name = host
    if name.startswith("[") and name.endswith("]"):
        name = name[1:-1]
    name = name.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _host_of(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""
