"""A first tunnel that nobody waits for: what is slow because it happens for the first time has happened by then.

OpenSSL looks up its algorithms at the first handshake, the interpreter specializes what it has seen a few times, memory
is touched that never was. So a worker that has its first certificate plays both ends of a connection a few times, over
socket pairs and through the code that real ones take: handshake, CONNECT, a byte and FIN each way. Each step is a short
call of the loop like any other. Nothing depends on it and nobody hears of it: whatever fails here is worth a debug log
and will be told by a real connection.

Must not know pods, the mesh or the network.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable

from ztunnel.core.wire import connect, frames
from ztunnel.worker.engine.agreement import Settings
from ztunnel.worker.engine.ending import Ending
from ztunnel.worker.engine.h2 import Tunnel
from ztunnel.worker.engine.loop import Loop
from ztunnel.worker.engine.parser import Headers
from ztunnel.worker.engine.stream import Stream
from ztunnel.worker.engine.tls import Session
from ztunnel.worker.proxy.certificates import Credentials
from ztunnel.worker.proxy.dial import expect
from ztunnel.worker.proxy.inbound import same_trust_domain

TAKES = 5
"""Most of the gain is the first one's; after the fifth there is none."""
BUDGET = 0.02
"""Seconds after which no other take begins; one is a few milliseconds."""
PATIENCE = 1.0
"""Seconds after which it is over in any case."""

_OVER = Ending("the rehearsal is over", "-")
_REQUEST = frames.encode_header(":method", "CONNECT") + frames.encode_header(":authority", "127.0.0.1:80")

log = logging.getLogger("ztunnel.worker.proxy.rehearsal")

SocketPair = Callable[[], tuple[socket.socket, socket.socket]]


class Rehearsal:
    """Owns both tunnels and both streams. Each application says a byte and FIN, which ends streams and take."""

    def __init__(
        self, loop: Loop, credentials: Credentials, settings: Settings, pair: SocketPair = socket.socketpair
    ) -> None:
        self._loop = loop
        self._credentials = credentials
        self._settings = settings
        self._pair = pair
        self._tunnels: list[Tunnel] = []
        self._sockets: set[socket.socket] = set()
        """Those that are still ours to close."""
        self._inner: list[socket.socket] = []
        """What the streams are to carry."""
        self._ended = 0
        """Streams of this take."""
        self._last_call = 0.0
        self.takes = 0
        """How many were played to their end."""
        self.over = False

    def begin(self) -> None:
        """Returns at once, raises nothing."""
        self._last_call = time.monotonic() + BUDGET
        self._loop.call_later(PATIENCE, self.end)
        self._go_on()

    def end(self) -> None:
        """Nothing is left of it; again changes nothing."""
        if not self.over:
            self.over = True
            self._clear()
            log.debug("rehearsed %d times", self.takes)

    def _go_on(self) -> None:
        in_time = not self.takes or time.monotonic() < self._last_call
        if self.takes >= TAKES or not in_time:
            self.end()
            return
        try:
            self._play()
        except Exception:
            log.debug("the rehearsal could not go on", exc_info=True)
            self.end()

    def _play(self) -> None:
        loop, credentials = self._loop, self._credentials
        identity = credentials.issued.identity
        self._ended = 0
        for _ in range(2):
            application, inner = self._new_pair()
            application.send(b"\0")
            application.shutdown(socket.SHUT_WR)
            self._inner.append(inner)
        near, far = self._new_pair()
        accepting = credentials.server.session(loop.scratch, same_trust_domain(identity))
        self._open(far, accepting, client=False)
        connecting = credentials.client.session(loop.scratch, expect((identity,)))
        self._open(near, connecting, client=True)

    def _cut(self) -> None:
        """Both streams have ended."""
        if self.over:
            return
        self.takes += 1
        self._clear()
        self._go_on()

    def _clear(self) -> None:
        tunnels, self._tunnels = self._tunnels, []
        for tunnel in tunnels:
            tunnel.close(_OVER)
        for sock in self._sockets:
            self._loop.close(sock)
        self._sockets.clear()
        self._inner.clear()

    def _new_pair(self) -> tuple[socket.socket, socket.socket]:
        pair = self._pair()
        self._sockets.update(pair)
        for sock in pair:
            sock.setblocking(False)
        return pair

    def _open(self, sock: socket.socket, session: Session, *, client: bool) -> None:
        tunnel = Tunnel(self._loop, sock, session, self, self._settings, client=client)
        self._sockets.discard(sock)
        self._tunnels.append(tunnel)

    def _attach(self, stream: Stream) -> None:
        inner = self._inner.pop()
        self._sockets.discard(inner)
        stream.attach(inner)

    # ---- TunnelOwner ----

    def secured(self, tunnel: Tunnel) -> None:
        if tunnel.client:
            self._attach(tunnel.open_stream(_REQUEST, self))

    def ready(self, tunnel: Tunnel) -> None: ...

    def requested(self, stream: Stream, headers: Headers) -> None:
        connect.check_request(headers)
        self._attach(stream)
        stream.tunnel.accept(stream, frames.RESPONSE_200, self)

    def changed(self, tunnel: Tunnel) -> None: ...

    def closed(self, tunnel: Tunnel, ending: Ending) -> None:
        if tunnel in self._tunnels:
            log.debug("the rehearsal failed: %s", ending.error)
            self._loop.call_soon(self.end)

    # ---- StreamOwner ----

    def opened(self, headers: Headers) -> None: ...

    def refused(self, status: int) -> None: ...

    def returned(self, sock: socket.socket, ending: Ending) -> None:
        self._sockets.add(sock)
        self.ended(ending)

    def ended(self, ending: Ending) -> None:
        self._ended += 1
        if not ending.ok:
            self._loop.call_soon(self.end)
        elif self._ended == 2:
            self._loop.call_soon(self._cut)
