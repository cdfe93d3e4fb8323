"""The tunnels of a pod to its peers: found, dialled once for all who wait, released when unused.

Tunnels are never shared between pods, and only between connections with the same source identity, the same
acceptable peer identities and the same next hop. A tunnel that is full (POOL_MAX_STREAMS_PER_CONNECTION, or what
the peer's SETTINGS allow) or draining is followed by another; its slots are used again when streams end.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from ztunnel.core.errors import UpstreamError, ZtunnelError
from ztunnel.worker.engine.ending import Ending
from ztunnel.worker.engine.h2 import Tunnel
from ztunnel.worker.engine.loop import Deadlines
from ztunnel.worker.engine.stream import Stream
from ztunnel.worker.proxy.dial import OpenSocket, PoolKey, dial, tunnel_failure
from ztunnel.worker.proxy.kit import Kit


class _Waiter:
    """One connection that waits for a tunnel."""

    __slots__ = ("error", "event")

    def __init__(self) -> None:
        self.event = trio.Event()
        self.error: ZtunnelError | None = None


class _Line:
    """All tunnels of one key, and who waits for the next."""

    def __init__(self, pool: Pool, key: PoolKey) -> None:
        self.pool = pool
        self.key = key
        self.tunnels: set[Tunnel] = set()
        self._roomy: dict[Tunnel, None] = {}
        """Those that may have room; a full one is taken out when it is met, and put back when a stream ends."""
        self.waiters: list[_Waiter] = []
        self.dialling = False

    # ---- TunnelOwner ----

    def secured(self, tunnel: Tunnel) -> None:
        self.pool.kit.handshakes.discard(tunnel)
        self.pool.kit.prefaces.add(tunnel)

    def ready(self, tunnel: Tunnel) -> None:
        self.pool.kit.prefaces.discard(tunnel)
        self.pool.kit.keepalive.add(tunnel)
        tunnel.session.trim()
        if tunnel.free_slots <= 0:
            self.settle(UpstreamError(f"{self.key.next_hop} allows no streams"))
            tunnel.drain()
            return
        self.tunnels.add(tunnel)
        self._roomy[tunnel] = None
        self.pool.idle.add(tunnel)
        self.settle(None)

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
            self.settle(tunnel_failure(self.key, ending))
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

    def settle(self, error: ZtunnelError | None) -> None:
        """The dial is over: everybody who waited tries again, or fails."""
        self.dialling = False
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            waiter.error = error
            waiter.event.set()

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
        self._dials: set[trio.CancelScope] = set()
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

    async def wait(self, key: PoolKey) -> None:
        """Until it is worth calling `take` again. Raises the ZtunnelError that ended the dial."""
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line(self, key)
        if not line.dialling:
            line.dialling = True
            self.kit.spawn(self._dialler(line))
        waiter = _Waiter()
        line.waiters.append(waiter)
        try:
            await waiter.event.wait()
        finally:
            if waiter in line.waiters:
                line.waiters.remove(waiter)
        if waiter.error is not None:
            raise waiter.error

    def _dialler(self, line: _Line) -> Callable[[], Awaitable[None]]:
        async def run() -> None:
            with scope:
                try:
                    self.live.add(await dial(self.kit, line.key, line, self._open_socket))
                except ZtunnelError as error:
                    line.settle(error)
                    if not line.tunnels:
                        self.forget(line.key)
            self._dials.discard(scope)

        scope = trio.CancelScope()
        self._dials.add(scope)
        return run

    def forget(self, key: PoolKey) -> None:
        self._lines.pop(key, None)

    def drain(self) -> None:
        """Close tunnels as they fall empty."""
        for tunnel in list(self.live):
            if not tunnel.streams:
                tunnel.drain()

    def close(self, why: str) -> None:
        """At once. Dials under way are cancelled before they can use the pod's namespace again."""
        for scope in self._dials:
            scope.cancel()
        for tunnel in list(self.live):
            tunnel.close(Ending(why))
        for line in list(self._lines.values()):
            line.settle(UpstreamError(why))
        self._lines.clear()


def _release(tunnel: object) -> None:
    """Unused for POOL_UNUSED_RELEASE_TIMEOUT."""
    assert isinstance(tunnel, Tunnel)
    if not tunnel.streams:
        tunnel.drain()
