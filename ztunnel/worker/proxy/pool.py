"""The tunnels of a pod to its peers: found, dialled once for all who wait, released when unused.

Tunnels are never shared between pods, and only between connections with the same source identity, the same
acceptable peer identities and the same next hop. A tunnel that is full (POOL_MAX_STREAMS_PER_CONNECTION, or what
the peer's SETTINGS allow) or draining is followed by another; its slots are used again when streams end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from ztunnel.core.errors import UpstreamError, ZtunnelError
from ztunnel.worker.engine.ending import Ending
from ztunnel.worker.engine.h2 import Tunnel
from ztunnel.worker.engine.loop import Deadlines
from ztunnel.worker.engine.stream import Stream
from ztunnel.worker.proxy.dial import Dial, OpenSocket, PoolKey, tunnel_failure
from ztunnel.worker.proxy.kit import Kit

Resume = Callable[[ZtunnelError | None], None]
"""Of one that waits: it is worth calling `take` again, or the error that ended the dial."""


class _Line:
    """All tunnels of one key, and who waits for the next."""

    def __init__(self, pool: Pool, key: PoolKey) -> None:
        self.pool = pool
        self.key = key
        self.tunnels: set[Tunnel] = set()
        self._roomy: dict[Tunnel, None] = {}
        """Those that may have room; a full one is taken out when it is met, and put back when a stream ends."""
        self.waiters: deque[Resume] = deque()
        self.dialling = False
        """A tunnel is on its way: not ready, and not failed."""

    # ---- TunnelOwner ----

    def secured(self, tunnel: Tunnel) -> None:
        """One request goes with our first flight; how many more there may be, the peer's SETTINGS will say."""
        self.pool.kit.handshakes.discard(tunnel)
        self.pool.kit.prefaces.add(tunnel)
        self.tunnels.add(tunnel)
        self._roomy[tunnel] = None
        self.serve()

    def ready(self, tunnel: Tunnel) -> None:
        self.pool.kit.settled(tunnel)
        if not tunnel.peer_max_streams:
            error = UpstreamError(f"{self.key.next_hop} allows no streams")
            self.fail(error)
            for stream in list(tunnel.streams.values()):
                stream.abort(str(error), error.flag)
            tunnel.drain()
            return
        self._roomy[tunnel] = None
        self.dialling = False
        if not tunnel.streams:
            self.pool.idle.add(tunnel)
        self.serve()

    def requested(self, stream: Stream, headers: list[tuple[bytes, bytes]]) -> None:
        stream.abort("a server may not open streams")

    def changed(self, tunnel: Tunnel) -> None:
        if tunnel.draining or tunnel.closed:
            self._drop(tunnel)
            return
        if tunnel in self.tunnels:
            self._roomy[tunnel] = None
        if not tunnel.streams:
            self.pool.idle.add(tunnel)

    def closed(self, tunnel: Tunnel, ending: Ending) -> None:
        kit = self.pool.kit
        kit.handshakes.discard(tunnel)
        kit.prefaces.discard(tunnel)
        kit.keepalive.discard(tunnel)
        self.pool.live.discard(tunnel)
        if not tunnel.settled:
            self.fail(tunnel_failure(self.key, ending))
        self._drop(tunnel)

    # ---- waiting ----

    def free(self) -> Tunnel | None:
        """A tunnel with room: the one that had it last, so that spare ones fall idle. O(1) in tunnels."""
        limit = self.pool.kit.settings.pool_max_streams_per_connection
        roomy = self._roomy
        while roomy:
            tunnel = next(reversed(roomy))
            if tunnel.free_slots > 0 and len(tunnel.streams) < limit:
                return tunnel
            del roomy[tunnel]
        return None

    def wait(self, resume: Resume) -> None:
        self.waiters.append(resume)
        if not self.dialling:
            self._dial()

    def serve(self) -> None:
        """Whoever has waited longest goes first, while there is room. Those who are left need another tunnel."""
        while self.waiters and self.free() is not None:
            self.waiters.popleft()(None)
        if self.waiters and not self.dialling:
            self._dial()

    def fail(self, error: ZtunnelError) -> None:
        """The dial is over, for everybody who waited for it."""
        self.dialling = False
        waiters, self.waiters = self.waiters, deque()
        for resume in waiters:
            resume(error)

    def _dial(self) -> None:
        self.dialling = True
        self.pool.dial(self)

    def _drop(self, tunnel: Tunnel) -> None:
        self.pool.idle.discard(tunnel)
        self.tunnels.discard(tunnel)
        self._roomy.pop(tunnel, None)
        if not self.tunnels and not self.waiters and not self.dialling:
            self.pool.forget(self.key)


class Pool:
    """`open_socket` makes the pod's sockets."""

    def __init__(self, kit: Kit, open_socket: OpenSocket) -> None:
        self.kit = kit
        self._open_socket = open_socket
        self._lines: dict[PoolKey, _Line] = {}
        self.live: set[Tunnel] = set()
        self._dials: set[Dial] = set()
        self.idle = Deadlines(kit.loop, kit.settings.pool_unused_release_timeout, _release)

    def __repr__(self) -> str:
        return f"<Pool {len(self._lines)} peers, {len(self.live)} tunnels>"

    def take(self, key: PoolKey) -> Tunnel | None:
        """An open tunnel with room for a stream, now."""
        line = self._lines.get(key)
        tunnel = line.free() if line is not None else None
        if tunnel is not None and not tunnel.streams:
            self.idle.discard(tunnel)
        return tunnel

    def wait(self, key: PoolKey, resume: Resume) -> None:
        """Have `resume` called when it is worth calling `take` again, or with what ended the dial; maybe at once."""
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line(self, key)
        line.wait(resume)

    def dial(self, line: _Line) -> None:
        """One more tunnel for the line."""

        def begun(dial: Dial, tunnel: Tunnel) -> None:
            self._dials.discard(dial)
            self.live.add(tunnel)

        def failed(dial: Dial, error: ZtunnelError) -> None:
            self._dials.discard(dial)
            line.fail(error)
            if not line.tunnels and not line.dialling:
                self.forget(line.key)

        dial = Dial(self.kit, line.key, line, self._open_socket, begun=begun, failed=failed)
        self._dials.add(dial)
        dial.begin()

    def forget(self, key: PoolKey) -> None:
        self._lines.pop(key, None)

    def drain(self) -> None:
        """Close tunnels as they fall empty."""
        for tunnel in list(self.live):
            if not tunnel.streams:
                tunnel.drain()

    def close(self, why: str) -> None:
        """At once. Dials under way are cancelled before they can use the pod's namespace again."""
        for dial in self._dials:
            dial.cancel()
        self._dials.clear()
        for tunnel in list(self.live):
            tunnel.close(Ending(why))
        for line in list(self._lines.values()):
            line.fail(UpstreamError(why))
        self._lines.clear()


def _release(tunnel: object) -> None:
    """Unused for POOL_UNUSED_RELEASE_TIMEOUT."""
    assert isinstance(tunnel, Tunnel)
    if not tunnel.streams:
        tunnel.drain()
