"""The connections that are open: one small record each, from acceptance to its Flow.

A record owns the application's socket until a carrier (an engine Stream or Relay) takes it over; the carrier then
reports the end, once. What connections of a kind have in common (who talks to whom, where to, why) is one `Terms` that
all of them share. `Connections` is what `show connections`, counters, policy changes and drain look at.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import msgspec
import trio

from ztunnel.core.model.address import Address
from ztunnel.core.model.connection import Connection, Direction, Refusal, Route
from ztunnel.core.model.flow import Flow
from ztunnel.core.model.identity import Identity
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


class Terms(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """What is known of a connection once it is decided, and is the same for all that were decided alike."""

    direction: Direction
    destination: Address | None = None
    """As the access log says it: the next hop (outbound), or what the peer connected to (inbound)."""
    actual: Address | None = None
    """Where its bytes really go."""
    authority: str = ""
    edge: int = -1
    why: str = ""
    authorized: bool = False
    """By policies (inbound), to be looked at again when they change."""
    identity: Identity | None = None
    """The client's, as it was authorized."""


OUTBOUND, INBOUND = Terms(direction=Direction.OUTBOUND), Terms(direction=Direction.INBOUND)
"""While nothing is decided."""


class Carried:
    """A connection from its acceptance on; implements the engine's StreamOwner."""

    __slots__ = (
        "carrier",
        "dialling",
        "ended_already",
        "id",
        "original",
        "pod",
        "route",
        "sock",
        "source",
        "started",
        "terms",
        "token",
        "tries",
    )

    def __init__(self, pod: Pod, terms: Terms, source: Address, sock: socket.socket | None) -> None:
        self.pod = pod
        self.terms = terms
        self.source = source
        self.sock = sock
        """The accepted socket, until a carrier owns it."""
        self.id = pod.kit.ledger.next_id()
        self.started = time.monotonic()
        self.original: Address | None = None
        """Where the client wanted to go."""
        self.route: Route | None = None
        """Drawn, until the connection has its tunnel and the peer's answer."""
        self.tries = 0
        """Tunnels whose peers never looked at the request."""
        self.carrier: Stream | JoinEnd | Relay | None = None
        self.dialling: socket.socket | None = None
        """The socket towards the actual destination, until it is connected."""
        self.ended_already = False
        self.token = ""
        """Offers to join both ends of a stream in this worker."""
        pod.kit.connections.add(self)

    def __repr__(self) -> str:
        terms = self.terms
        return f"<{terms.direction.value} {self.source} to {self.original or terms.destination}: {terms.why or 'new'}>"

    @property
    def kit(self) -> Kit:
        return self.pod.kit

    @property
    def authorized(self) -> Connection | None:
        """What policies were asked about, if they were."""
        terms = self.terms
        if not terms.authorized or terms.actual is None:
            return None
        return Connection(terms.identity, self.source, terms.actual)

    # ---- life ----

    def identify(self, terms: Terms) -> None:
        """Who talks to whom is known now: from here on it counts as opened."""
        self.terms = terms
        self.pod.kit.ledger.opened(terms.edge)

    def dial(self, sock: socket.socket, target: Address, done: Callable[[OSError | None], None]) -> None:
        """Connect `sock` and hand it back with `done`; if the connection ends before that, it is closed instead."""
        self.dialling = sock

        def settled(error: OSError | None) -> None:
            self.dialling = None
            done(error)

        self.kit.dialler.connect(sock, target, settled)

    def opened(self, headers: list[tuple[bytes, bytes]]) -> None:
        self.pod.kit.answers.discard(self)
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
        kit = self.pod.kit
        if self.route is not None:
            kit.answers.discard(self)
        if self.token:
            kit.joins.forget(self)
        if self.dialling is not None:
            kit.dialler.cancel(self.dialling)
            kit.loop.close(self.dialling)
            self.dialling = None
        if self.sock is not None:
            if not ending.ok:
                abort_on_close(self.sock)
            kit.loop.close(self.sock)
            self.sock = None
        kit.connections.discard(self)
        sent, received = self.byte_counts()
        terms, started = self.terms, self.started
        kit.ledger.finished(
            Flow(
                id=self.id,
                edge=terms.edge,
                direction=terms.direction,
                source=self.source,
                destination=terms.destination,
                hbone_address=terms.authority,
                started=kit.ledger.wall(started),
                duration=time.monotonic() - started,
                bytes_sent=sent,
                bytes_received=received,
                flag=ending.flag,
                error=ending.error,
                why=terms.why,
            )
        )

    def refuse(self, refusal: Refusal) -> None:
        """A decision against it."""
        if not self.terms.why:
            self.terms = msgspec.structs.replace(self.terms, why=refusal.why)
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
        if self.terms.direction is Direction.OUTBOUND:
            return carrier.bytes_up, carrier.bytes_down
        return carrier.bytes_down, carrier.bytes_up

    def describe(self) -> OpenConnection:
        sent, received = self.byte_counts()
        terms = self.terms
        return OpenConnection(
            id=self.id,
            pod=self.pod.uid,
            edge=terms.edge,
            direction=terms.direction.value,
            protocol="HBONE" if terms.authority else "TCP",
            source=str(self.source),
            original_destination=str(self.original or ""),
            actual_destination=str(terms.actual or ""),
            opened=self.kit.ledger.wall(self.started),
            bytes_sent=sent,
            bytes_received=received,
            why=terms.why,
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
            terms = each.terms
            sockets[terms.direction.value] += 1
            if terms.edge >= 0:
                sent, received = each.byte_counts()
                if sent or received:
                    before = totals.get(terms.edge, (0, 0))
                    totals[terms.edge] = (before[0] + sent, before[1] + received)
        return Counters(opened=opened, open_bytes=totals, sockets=sockets)
