"""Requests and responses over the ASGI interface (version 3, HTTP only): as much of it as three small servers need.

Response bodies are bytes, or text in pieces that are made while they are sent. Request bodies are not looked at.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping, Sequence
from email.utils import formatdate
from typing import Any, Protocol
from urllib.parse import parse_qsl, unquote

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Client(Protocol):
    """The connection that an application's answers go to."""

    async def send_all(self, data: bytes) -> None: ...
    async def receive_some(self, max_bytes: int) -> bytes | bytearray: ...


TEXT = "text/plain; charset=utf-8"
HTML = "text/html; charset=utf-8"
JSON = "application/json"


def scope(method: str, target: bytes, headers: Sequence[tuple[bytes, bytes]]) -> Scope:
    """Of a request, whichever HTTP it came by."""
    path, _, query = target.partition(b"?")
    return {
        "type": "http",
        "method": method,
        "path": unquote(path.decode("latin-1")),
        "query_string": query,
        "headers": headers,
    }


async def no_body() -> Message:
    """What an application receives of a request's body."""
    return {"type": "http.request", "body": b"", "more_body": False}


def date() -> tuple[bytes, bytes]:
    """The header of that name (RFC 9110 section 6.6.1)."""
    return b"date", formatdate(usegmt=True).encode()


class Request:
    def __init__(self, scope: Scope) -> None:
        self._headers: Sequence[tuple[bytes, bytes]] = scope["headers"]
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query: Mapping[str, str] = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))

    def headers(self, name: str) -> list[str]:
        """The values of every header of this name (in lower case)."""
        wanted = name.encode()
        return [value.decode("latin-1") for key, value in self._headers if key.lower() == wanted]


class Response:
    """An answer, and what to do once it has been sent."""

    def __init__(
        self,
        body: bytes | AsyncIterator[str] = b"",
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        *,
        then: Callable[[], None] = lambda: None,
    ) -> None:
        self._body = body
        self._status = status
        self._headers = dict(headers or {})
        self._then = then
        if isinstance(body, bytes):
            self._headers["content-length"] = str(len(body))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(name.encode(), value.encode("latin-1")) for name, value in self._headers.items()]
        await send({"type": "http.response.start", "status": self._status, "headers": headers})
        if isinstance(self._body, bytes):
            await send({"type": "http.response.body", "body": self._body})
        else:
            async for piece in self._body:
                await send({"type": "http.response.body", "body": piece.encode(), "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        self._then()


def text(
    body: str, status: int = 200, headers: Mapping[str, str] | None = None, *, then: Callable[[], None] = lambda: None
) -> Response:
    """An answer in plain text."""
    return Response(body.encode(), status, {"content-type": TEXT} | dict(headers or {}), then=then)
