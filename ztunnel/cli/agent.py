"""Asks a running agent over its HTTP ports. Blocking, with the standard library only: commands must start fast."""

from __future__ import annotations

import http.client
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec

from ztunnel.core.errors import ConfigError, UpstreamError

DEFAULT_ADMIN = "http://127.0.0.1:15000"
DEFAULT_READINESS = "http://127.0.0.1:15021"
TIMEOUT = 10.0
"""Seconds for each step of an answer."""
MAX_ANSWER = 1 << 30
"""Bytes; a dump of 100,000 workloads is a tenth of it."""


class Reply(NamedTuple):
    status: int
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "backslashreplace").strip()


def ask(base: str, path: str, *, method: str = "GET", timeout: float = TIMEOUT) -> Reply:
    """What the agent at `base` (`http://host:port`) answers.

    Raises ConfigError when `base` is no such URL, UpstreamError when nobody answers.
    """
    host, port = _parse(base)
    base = base.rstrip("/")
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        body = response.read(MAX_ANSWER)
    except (OSError, http.client.HTTPException) as error:
        raise UpstreamError(
            f"no answer from {base}{path}: {error or type(error).__name__}",
            hint="is the agent running here (`ztunnel serve`)? In another namespace: `ip netns exec NAME ztunnel ...`; "
            "another address: --admin URL",
        ) from None
    finally:
        connection.close()
    return Reply(response.status, body)


def fetch_dump(base: str) -> dict[str, Any]:
    """The agent's config_dump. Raises as `ask` does, and UpstreamError when the answer is none."""
    reply = ask(base, "/config_dump")
    if reply.status != 200:
        raise UpstreamError(
            f"{base} answered {reply.status} to /config_dump: {reply.text[:200]}", hint="is this the admin port?"
        )
    return parse_dump(reply.body, base)


def parse_dump(content: bytes, origin: str) -> dict[str, Any]:
    """A config_dump as it was read from `origin`. Raises UpstreamError when it is none."""
    try:
        return msgspec.json.decode(content, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise UpstreamError(
            f"{origin} holds no config_dump: {error}", hint="save one with `curl localhost:15000/config_dump`"
        ) from None


def _parse(base: str) -> tuple[str, int]:
    try:
        url = urlsplit(base)
        port = url.port
    except ValueError:
        url, port = urlsplit(""), None
    if url.scheme != "http" or not url.hostname or url.path not in ("", "/") or url.query or url.fragment:
        raise ConfigError(f"{base!r} is not http://HOST:PORT", hint=f"e.g. {DEFAULT_ADMIN}")
    return url.hostname, port or 80
