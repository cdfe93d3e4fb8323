"""The connections that are open: one small record each, from acceptance to its Flow.

A record owns the application's socket until a carrier (an engine Stream or Relay) takes it over; the carrier then
reports the end, once. `Connections` is what `show connections`, counters, policy changes and drain look at.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import trio

from ztunnel.core.model.address import Address
from ztunnel.core.model.connection import Connection, Direction, Refusal, Route
from ztunnel.core.model.flow import Flow
from ztunnel.link.messages import Counters, OpenConnection
from ztunnel.worker.engine.ending import Ending
from ztunnel.worker.engine.join import JoinEnd
from ztunnel.worker.engine.relay import Relay
from ztunnel.worker.engine.stream import Stream
from ztunnel.worker.engine.tcp import abort_on_close

if TYPE_CHECKING:
    from ztunnel.worker.proxy.kit import Kit
    from ztunnel.worker.proxy.pod import Pod


MAX_TRIES = 3
"""Tunnels tried for a connection whose peers say that they never looked at its request."""


class Carried:
    """A connection from its acceptance on; implements the engine's StreamOwner."""

    __slots__ = (
        "actual",
        "authority",
        "authorized",
        "carrier",
        "destination",
        "dialling",
        "direction",
        "edge",
        "ended_already",
        "id",
        "kit",
        "original",
        "pod",
        "route",
        "sock",
        "source",
        "started",
        "token",
        "tries",
        "why",
    )

    def __init__(self, kit: Kit, pod: Pod, direction: Direction, source: Address, sock: socket.socket | None) -> None:
        self.kit = kit
        self.pod = pod
        self.direction = direction
        self.source = source
        self.sock = sock
        """The accepted socket, until a carrier owns it."""
        self.id = kit.ledger.next_id()
        self.started = time.monotonic()
        self.original: Address | None = None
        """Where the client wanted to go."""
        self.destination: Address | None = None
        """As the access log says it: the next hop (outbound), or what the peer connected to (inbound)."""
        self.actual: Address | None = None
        """Where its bytes really go."""
        self.authority = ""
        self.edge = -1
        self.why = ""
        self.route: Route | None = None
        """Drawn, until the connection has its tunnel and the peer's answer."""
        self.tries = 0
        """Tunnels whose peers never looked at the request."""
        self.carrier: Stream | JoinEnd | Relay | None = None
        self.authorized: Connection | None = None
        """What was authorized (inbound), to be looked at again when policies change."""
        self.dialling: socket.socket | None = None
        """The socket towards the actual destination, until it is connected."""
        self.ended_already = False
        self.token = ""
        """Offers to join both ends of a stream in this worker."""
        kit.connections.add(self)

    def __repr__(self) -> str:
        return f"<{self.direction.value} {self.source} to {self.original or self.destination}: {self.why or 'new'}>"

    # ---- life ----

    def identify(self, edge: int, why: str) -> None:
        """Who talks to whom is known now: from here on it counts as opened."""
        self.edge = edge
        self.why = why
        self.kit.ledger.opened(edge)

    def dial(self, sock: socket.socket, target: Address, done: Callable[[OSError | None], None]) -> None:
        """Connect `sock` and hand it back with `done`; if the connection ends before that, it is closed instead."""
        self.dialling = sock

        def settled(error: OSError | None) -> None:
            self.dialling = None
            done(error)

        self.kit.dialler.connect(sock, target, settled)

    def opened(self, headers: list[tuple[bytes, bytes]]) -> None:
        self.kit.answers.discard(self)
        self.route = None
        if self.token:
            self.kit.joins.forget(self)

    def returned(self, sock: socket.socket, ending: Ending) -> None:
        """The tunnel's peer never looked at the request: try another tunnel, a few times."""
        self.kit.answers.discard(self)
        self.sock, self.carrier = sock, None
        if self.token:
            self.kit.joins.forget(self)
            self.token = ""
        self.tries += 1
        if self.tries >= MAX_TRIES:
            self.ended(ending)
        else:
            self.kit.loop.call_soon(lambda: self.pod.outbound.carry(self))

    def refused(self, status: int) -> None:
        self.kit.answers.discard(self)

    def ended(self, ending: Ending) -> None:
        """From the carrier, or from `fail`."""
        if self.ended_already:
            return
        self.ended_already = True
        self.kit.answers.discard(self)
        if self.token:
            self.kit.joins.forget(self)
        if self.dialling is not None:
            self.kit.dialler.cancel(self.dialling)
            self.kit.loop.close(self.dialling)
            self.dialling = None
        if self.sock is not None:
            if not ending.ok:
                abort_on_close(self.sock)
            self.kit.loop.close(self.sock)
            self.sock = None
        self.kit.connections.discard(self)
        sent, received = self.byte_counts()
        now = time.monotonic()
        self.kit.ledger.finished(
            Flow(
                id=self.id,
                edge=self.edge,
                direction=self.direction,
                source=self.source,
                destination=self.destination,
                hbone_address=self.authority,
                started=self.kit.ledger.wall(self.started),
                duration=now - self.started,
                bytes_sent=sent,
                bytes_received=received,
                flag=ending.flag,
                error=ending.error,
                why=self.why,
            )
        )

    def refuse(self, refusal: Refusal) -> None:
        """A decision against it."""
        if not self.why:
            self.why = refusal.why
        self.ended(Ending(refusal.why, refusal.flag))

    def abort(self, why: str, flag: str = "CONNECT") -> None:
        """End it now, whatever carries it: a reset to both sides.

        Where another worker carries the bytes, the record waits for its last word.
        """
        carrier = self.carrier
        if carrier is not None:
            carrier.abort(why, flag)
        if not isinstance(carrier, JoinEnd) or not carrier.outstanding:
            self.ended(Ending(why, flag))

    # ---- what it looks like ----

    def byte_counts(self) -> tuple[int, int]:
        """Sent and received as the access log means them (sent: towards the peer this proxy speaks to)."""
        carrier = self.carrier
        if carrier is None:
            return 0, 0
        if not isinstance(carrier, Relay):
            return carrier.sent, carrier.received
        if self.direction is Direction.OUTBOUND:
            return carrier.bytes_up, carrier.bytes_down
        return carrier.bytes_down, carrier.bytes_up

    def describe(self) -> OpenConnection:
        sent, received = self.byte_counts()
        return OpenConnection(
            id=self.id,
            pod=self.pod.uid,
            edge=self.edge,
            direction=self.direction.value,
            protocol="HBONE" if self.authority else "TCP",
            source=str(self.source),
            original_destination=str(self.original or ""),
            actual_destination=str(self.actual or ""),
            opened=self.kit.ledger.wall(self.started),
            bytes_sent=sent,
            bytes_received=received,
            why=self.why,
        )


class Connections:
    """Every open connection of a worker by id."""

    def __init__(self) -> None:
        self._open: dict[int, Carried] = {}
        self._empty: trio.Event | None = None

    def __len__(self) -> int:
        return len(self._open)

    def add(self, connection: Carried) -> None:
        self._open[connection.id] = connection

    def discard(self, connection: Carried) -> None:
        self._open.pop(connection.id, None)
        if not self._open and self._empty is not None:
            self._empty.set()

    async def wait_empty(self) -> None:
        """Until the last open connection has ended."""
        while self._open:
            self._empty = trio.Event()
            await self._empty.wait()

    def snapshot(self) -> list[Carried]:
        return list(self._open.values())

    def of_pod(self, pod: Pod) -> Iterable[Carried]:
        return [each for each in self._open.values() if each.pod is pod]

    def counters(self, opened: dict[int, int]) -> Counters:
        """Byte counts of what is open, by edge, and sockets by direction."""
        totals: dict[int, tuple[int, int]] = {}
        sockets = {direction.value: 0 for direction in Direction}
        for each in self._open.values():
            sockets[each.direction.value] += 1
            if each.edge >= 0:
                sent, received = each.byte_counts()
                if sent or received:
                    before = totals.get(each.edge, (0, 0))
                    totals[each.edge] = (before[0] + sent, before[1] + received)
        return Counters(opened=opened, open_bytes=totals, sockets=sockets)
