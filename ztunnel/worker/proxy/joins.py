"""Finds out that both ends of a stream live in this very agent, and joins them.

A request to a pod of ours carries a token that nobody else can know; the role that serves the request finds the
connection behind it, or asks the worker of the pod that the request came from (see `siblings`). Tokens are random,
used once, and forgotten when their connection ends.
"""

from __future__ import annotations

import secrets
import socket
from typing import TYPE_CHECKING

import trio

from ztunnel.core.wire import frames
from ztunnel.link.unix import sibling_end
from ztunnel.worker.engine.join import Join, JoinEnd, Leash
from ztunnel.worker.engine.stream import Stream
from ztunnel.worker.proxy.siblings import Sibling

if TYPE_CHECKING:
    from ztunnel.worker.proxy.connections import Carried
    from ztunnel.worker.proxy.kit import Kit

HEADER = b"x-ztunnel-join"
TOKEN_BYTES = 16
COUNTS_TIMEOUT = 0.5
"""Seconds for the other workers to say how much they carried; then what they said last counts."""


class Joins:
    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled
        self._local: dict[str, int] = {}
        """How many pods of this worker have the address."""
        self._remote: dict[str, Sibling] = {}
        """Whose pod has the address."""
        self._near: frozenset[str] = frozenset()
        """All of them."""
        self._siblings: set[Sibling] = set()
        self._offered: dict[str, Carried] = {}

    # ---- who is near ----

    def add_pod(self, ips: tuple[str, ...]) -> None:
        """A pod of this worker has these addresses."""
        for ip in ips:
            self._local[ip] = self._local.get(ip, 0) + 1
        self._moved(tell=True)

    def remove_pod(self, ips: tuple[str, ...]) -> None:
        for ip in ips:
            left = self._local.get(ip, 0) - 1
            if left > 0:
                self._local[ip] = left
            else:
                self._local.pop(ip, None)
        self._moved(tell=True)

    def meet(self, kit: Kit, number: int, sock: socket.socket) -> None:
        """A link to another worker; owns the socket."""
        if not self._enabled:
            sock.close()
            return
        sibling = Sibling(kit, self, number, sibling_end(sock))
        self._siblings.add(sibling)
        sibling.tell_addresses(tuple(self._local))

    def sibling_moved(self, sibling: Sibling) -> None:
        """Its pods have changed, or it is gone."""
        if sibling.closed:
            self._siblings.discard(sibling)
        self._moved(tell=False)

    def _moved(self, *, tell: bool) -> None:
        if tell:
            for sibling in list(self._siblings):
                sibling.tell_addresses(tuple(self._local))
        self._remote = {ip: sibling for sibling in self._siblings for ip in sibling.ips}
        self._near = frozenset(self._local) | frozenset(self._remote)

    def close(self) -> None:
        for sibling in list(self._siblings):
            sibling.close("this worker ends")

    # ---- tokens ----

    def offer(self, carried: Carried, ip: str) -> bytes:
        """The encoded header that offers a join, if `ip` is a pod of ours; else nothing."""
        if not self._enabled or ip not in self._near:
            return b""
        token = secrets.token_hex(TOKEN_BYTES)
        self._offered[token] = carried
        carried.token = token
        return frames.encode_header(HEADER.decode(), token)

    def forget(self, carried: Carried) -> None:
        self._offered.pop(carried.token, None)

    def accept(
        self,
        kit: Kit,
        headers: list[tuple[bytes, bytes]],
        inbound: Carried,
        stream: Stream,
        sock: socket.socket,
        answer: bytes,
    ) -> bool:
        """Join `sock` with the connection that the request's token names, if it still waits for its answer.

        When true, the stream is or will be answered.
        """
        sibling = self._remote.get(inbound.source.ip) if self._remote else None
        if sibling is None and not self._offered:
            return False
        token = next((value for name, value in headers if name == HEADER), b"").decode("latin-1")
        if not token:
            return False
        if token in self._offered:
            join = self.join(kit, token, stream, sock)
            if join is None:
                return False
            inbound.carrier = JoinEnd(join, stream, outbound=False)
            stream.tunnel.accept(stream, answer, inbound)
            return True
        return sibling is not None and sibling.lend(token, inbound, stream, sock, answer)

    def join(self, kit: Kit, token: str, far: Leash, sock: socket.socket) -> Join | None:
        """Join `sock` with the application behind the token, if there is one; only then the socket is taken."""
        outbound = self._offered.pop(token, None)
        if outbound is None or outbound.ended_already:
            return None
        near = outbound.carrier
        if not isinstance(near, Stream) or near.answered or near.closed:
            return None
        join = Join(kit.loop, kit.pipes, near, far, sock)
        outbound.carrier = JoinEnd(join, near, outbound=True)
        return join

    # ---- what others carry for us ----

    @property
    def lends(self) -> bool:
        """Whether other workers carry bytes of connections of ours."""
        return any(sibling.lends for sibling in self._siblings)

    async def refresh(self) -> None:
        """Bring the byte counts of those up to date."""
        waiting = [sibling.ask_counts() for sibling in self._siblings if sibling.lends]
        with trio.move_on_after(COUNTS_TIMEOUT):
            for counted in waiting:
                await counted.wait()
