"""Plaintext connections to pods (15006): authorized without an identity, and delivered where they were going."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from ztunnel.core.decide import inbound
from ztunnel.core.decide.edges import edge
from ztunnel.core.errors import ZtunnelError
from ztunnel.core.model.address import Address, from_sockaddr
from ztunnel.core.model.connection import Connection, Direction, Refusal
from ztunnel.core.model.workload import Workload
from ztunnel.worker.engine.ending import Ending
from ztunnel.worker.proxy.connections import INBOUND, Carried, Terms
from ztunnel.worker.proxy.kit import Kit
from ztunnel.worker.proxy.memo import Memo
from ztunnel.worker.proxy.original import original_destination
from ztunnel.worker.proxy.outbound import join
from ztunnel.worker.proxy.upstream import upstream_socket

if TYPE_CHECKING:
    from ztunnel.worker.proxy.pod import Pod


class Passthrough:
    """The inbound plaintext role of one pod."""

    def __init__(self, kit: Kit, pod: Pod) -> None:
        self._kit = kit
        self._pod = pod
        self._terms: Memo[tuple[str, Address], Terms] = Memo(kit.store)

    def take(self, sock: socket.socket, peer: Any) -> None:
        """A connection was accepted; owns the socket."""
        kit, pod = self._kit, self._pod
        carried = Carried(pod, INBOUND, from_sockaddr(peer), sock)
        carried.original = original_destination(sock, pod.capture)
        if carried.original is None:
            carried.refuse(Refusal("CONNECT", 503, "its original destination cannot be recovered"))
            return
        carried.terms = Terms(direction=Direction.INBOUND, destination=carried.original)
        workload = pod.workload()
        if workload is None:
            kit.spawn(lambda: self._later(carried))
        else:
            self._deliver(carried, workload)

    async def _later(self, carried: Carried) -> None:
        try:
            workload = await self._pod.wait_for_workload()
        except ZtunnelError as error:
            carried.ended(Ending(str(error), error.flag))
            return
        if not carried.ended_already:
            self._deliver(carried, workload)

    def _deliver(self, carried: Carried, own: Workload) -> None:
        kit, pod = self._kit, self._pod
        assert carried.original is not None
        key = carried.source.ip, carried.original
        terms = self._terms.get(key)
        if terms is None:
            decided = self._decide(own, *key)
            if isinstance(decided, Refusal):
                carried.refuse(decided)
                return
            terms = self._terms.keep(key, decided)
        assert terms.actual is not None
        carried.original = terms.destination  # equal, and shared
        carried.identify(terms)
        verdict = kit.authorizer.check(own, Connection(None, carried.source, terms.actual))
        if not verdict.allowed:
            carried.refuse(Refusal("DENY", 401, f"connection closed due to policy rejection: {verdict.why}"))
            return
        try:
            far = upstream_socket(kit, pod, carried.source, terms.actual)
        except OSError as error:
            carried.ended(Ending(f"no socket for {terms.actual}: {error.strerror}"))
            return
        join(kit, carried, far)

    def _decide(self, own: Workload, ip: str, original: Address) -> Terms | Refusal:
        kit = self._kit
        delivery = inbound.deliver_plain(
            kit.store, own=own, destination=original, illegal_ports=kit.settings.illegal_ports
        )
        if isinstance(delivery, Refusal):
            return delivery
        source = kit.store.workload_at(kit.settings.network, ip)
        who = edge(Direction.INBOUND, source=source, destination=own, service=delivery.service)
        return Terms(
            direction=Direction.INBOUND,
            destination=original,
            actual=delivery.target,
            edge=kit.ledger.number(who),
            why=delivery.why,
            authorized=True,
        )
