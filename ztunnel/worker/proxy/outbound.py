"""Connections that pods make (15001): recovered, routed, and carried in a tunnel, in plain TCP, or straight on.

`_attempt` is the whole set-up. It runs straight from the accept callback; where something is missing it runs again once
that is there, called by the pool (a tunnel) or by a task that waited (the pod's own workload): one set-up, not a fast
and a slow copy. A route is drawn once: a connection that waits for a tunnel keeps the endpoint it waits for, and
is known by it if the tunnel fails.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from ztunnel.core.decide.edges import edge
from ztunnel.core.decide.outbound import route
from ztunnel.core.errors import ZtunnelError
from ztunnel.core.model.address import Address, from_sockaddr
from ztunnel.core.model.capture import PROBE_BANNER, PROBE_PORT
from ztunnel.core.model.connection import Direction, Refusal, Route, RouteKind
from ztunnel.core.model.workload import Workload
from ztunnel.core.wire import connect
from ztunnel.worker.engine.ending import Ending
from ztunnel.worker.engine.relay import Relay
from ztunnel.worker.proxy.connections import OUTBOUND, Carried, Terms
from ztunnel.worker.proxy.dial import PoolKey
from ztunnel.worker.proxy.kit import Kit
from ztunnel.worker.proxy.memo import Memo
from ztunnel.worker.proxy.original import original_destination
from ztunnel.worker.proxy.pool import Pool
from ztunnel.worker.proxy.upstream import pod_socket

if TYPE_CHECKING:
    from ztunnel.worker.proxy.pod import Pod

Missing = Callable[[], Awaitable[object]]
"""Waits for what a set-up lacks; raises ZtunnelError when it will not come."""


class Way(NamedTuple):
    """A route, and whatever else is the same for all connections of a workload that take it."""

    source: Workload
    route: Route
    original: Address
    terms: Terms
    key: PoolKey
    request: connect.RequestForm | None
    """None unless HBONE."""


class Outbound:
    """The outbound role of one pod."""

    def __init__(self, kit: Kit, pod: Pod) -> None:
        self._kit = kit
        self._pod = pod
        self.pool = Pool(kit, partial(pod_socket, kit, pod))
        self._ways: Memo[tuple[Address, Address | None], Way] = Memo(kit.store)

    def take(self, sock: socket.socket, peer: Any) -> None:
        """A connection was accepted; owns the socket."""
        pod = self._pod
        carried = Carried(pod, OUTBOUND, from_sockaddr(peer), sock)
        carried.original = original = original_destination(sock, pod.capture)
        if original is None:
            carried.refuse(Refusal("CONNECT", 503, "its original destination cannot be recovered"))
        elif original.port == PROBE_PORT:
            self._answer_probe(carried)
        else:
            self.carry(carried)

    def carry(self, carried: Carried) -> None:
        """Set it up now if nothing is missing, else in a task."""
        try:
            missing = self._attempt(carried)
        except ZtunnelError as error:
            carried.ended(Ending(str(error), error.flag))
            return
        if missing is not None:
            self._kit.spawn(lambda: self._later(carried, missing))

    async def _later(self, carried: Carried, missing: Missing | None) -> None:
        """Wait for what is missing until nothing is."""
        try:
            while missing is not None and not carried.ended_already:
                await missing()
                missing = self._attempt(carried)
        except ZtunnelError as error:
            carried.ended(Ending(str(error), error.flag))

    def _attempt(self, carried: Carried) -> Missing | None:
        if carried.ended_already:
            return None
        pod = self._pod
        workload = pod.workload()
        if workload is None:
            return pod.wait_for_workload
        assert carried.original is not None
        if carried.route is not None:
            return self._tunnel(carried, self.prepare(workload, carried.original, carried.route))
        way = self._decide(workload, carried.original)
        if isinstance(way, Refusal):
            carried.refuse(way)
            return None
        carried.original = way.original  # equal, and shared
        carried.identify(way.terms)
        if way.route.kind is RouteKind.HBONE:
            return self._tunnel(carried, way)
        self._plain(carried, way.route)
        return None

    def _decide(self, workload: Workload, target: Address) -> Way | Refusal:
        """Where to: remembered where chance has no part in it; equal routes of a service are one value."""
        known = self._ways.get((target, None))
        if known is not None:
            return known
        kit = self._kit
        decision = route(
            kit.store,
            source=workload,
            target=target,
            network=kit.settings.network,
            roll=kit.random.random(),
            illegal_ports=kit.settings.illegal_ports,
            hbone_port=kit.settings.inbound_port,
        )
        if isinstance(decision, Refusal):
            return decision
        key = target, None if decision.certain else decision.next_hop
        known = self._ways.get(key)
        return known if known is not None else self._ways.keep(key, self.prepare(workload, target, decision))

    def prepare(self, workload: Workload, original: Address, chosen: Route) -> Way:
        """What `chosen` means for connections of this workload."""
        service, tunnelled = chosen.service, chosen.kind is RouteKind.HBONE
        who = edge(
            Direction.OUTBOUND, source=workload, destination=chosen.workload, service=service, mutual_tls=tunnelled
        )
        terms = Terms(
            direction=Direction.OUTBOUND,
            destination=chosen.next_hop,
            actual=chosen.target,
            authority=chosen.authority,
            edge=self._kit.ledger.number(who),
            why=chosen.why,
        )
        key = PoolKey(workload.identity, chosen.identities, chosen.next_hop)
        request = None
        if tunnelled:
            host = service.hostname if service else ""
            request = connect.RequestForm(chosen.authority, connect.baggage(workload), host)
        return Way(workload, chosen, original, terms, key, request)

    def _answer_probe(self, carried: Carried) -> None:
        """A capture probe came through: say so, whatever address it asked for."""
        sock, carried.sock = carried.sock, None
        assert sock is not None
        with suppress(OSError):
            sock.send(PROBE_BANNER)
        self._kit.loop.close(sock)
        self._kit.connections.discard(carried)
        carried.ended_already = True

    # ---- HBONE ----

    def _tunnel(self, carried: Carried, way: Way) -> Missing | None:
        tunnel = self.pool.take(way.key)
        carried.route = way.route
        if tunnel is None:
            self.pool.wait(way.key, partial(self._resume, carried))
            return None
        kit = self._kit
        sock, carried.sock = carried.sock, None
        assert sock is not None
        assert way.request is not None
        offer = kit.joins.offer(carried, way.route.next_hop.ip)
        random = kit.random.getrandbits
        stream = tunnel.open_stream(way.request.fill(carried.source, random(128), random(64), offer), carried)
        stream.attach(sock)
        carried.carrier = stream
        kit.answers.add(carried)
        return None

    def _resume(self, carried: Carried, error: ZtunnelError | None) -> None:
        """The tunnel that it waited for is there, or will not be."""
        if error is None:
            self.carry(carried)
        else:
            carried.ended(Ending(str(error), error.flag))

    # ---- plain ----

    def _plain(self, carried: Carried, chosen: Route) -> None:
        kit, pod = self._kit, self._pod
        try:
            far = pod_socket(kit, pod, chosen.next_hop)
        except OSError as error:
            carried.ended(Ending(f"no socket for {chosen.next_hop}: {error.strerror}"))
            return
        join(kit, carried, far)


def join(kit: Kit, carried: Carried, far: socket.socket) -> None:
    """Connect `far` to the connection's actual destination and relay; owns `far`."""
    target = carried.terms.actual
    assert target is not None

    def connected(error: OSError | None) -> None:
        if error is not None:
            kit.loop.close(far)
            carried.ended(Ending(f"cannot connect to {target}: {error.strerror}"))
            return
        near, carried.sock = carried.sock, None
        assert near is not None
        carried.carrier = Relay(kit.loop, kit.pipes, near, far, carried.ended)

    carried.dial(far, target, connected)
