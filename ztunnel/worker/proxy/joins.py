"""Finds out that both ends of a stream live in this very worker, and joins them.

A request to a pod of ours carries a token that nobody else can know; the role that serves the request finds the
connection behind it. Tokens are random, used once, and forgotten when their connection ends.
"""

from __future__ import annotations

import secrets
import socket
from typing import TYPE_CHECKING

from ztunnel.core.wire import frames
from ztunnel.worker.engine.join import Join
from ztunnel.worker.engine.stream import Stream

if TYPE_CHECKING:
    from ztunnel.worker.proxy.connections import Carried
    from ztunnel.worker.proxy.kit import Kit

HEADER = b"x-ztunnel-join"
TOKEN_BYTES = 16


class Joins:
    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled
        self._local: dict[str, int] = {}
        self._offered: dict[str, Carried] = {}

    def add_pod(self, ips: tuple[str, ...]) -> None:
        """A pod of this worker has these addresses."""
        for ip in ips:
            self._local[ip] = self._local.get(ip, 0) + 1

    def remove_pod(self, ips: tuple[str, ...]) -> None:
        for ip in ips:
            left = self._local.get(ip, 0) - 1
            if left > 0:
                self._local[ip] = left
            else:
                self._local.pop(ip, None)

    def offer(self, carried: Carried, ip: str) -> bytes:
        """The encoded header that offers a join, if `ip` is a pod of ours; else nothing."""
        if not self._enabled or ip not in self._local:
            return b""
        token = secrets.token_hex(TOKEN_BYTES)
        self._offered[token] = carried
        carried.token = token
        return frames.encode_header(HEADER.decode(), token)

    def forget(self, carried: Carried) -> None:
        self._offered.pop(carried.token, None)

    def accept(
        self, kit: Kit, headers: list[tuple[bytes, bytes]], inbound: Carried, stream: Stream, sock: socket.socket
    ) -> bool:
        """Join `sock` with the connection that the request's token names, if it still waits for its answer."""
        if not self._offered:
            return False
        token = next((value for name, value in headers if name == HEADER), b"")
        outbound = self._offered.pop(token.decode("latin-1"), None) if token else None
        if outbound is None or outbound.ended_already:
            return False
        near = outbound.carrier
        if not isinstance(near, Stream) or near.answered or near.closed:
            return False
        join = Join(kit.loop, kit.pipes, near, stream, sock)
        outbound.carrier = join.near
        inbound.carrier = join.far
        return True
