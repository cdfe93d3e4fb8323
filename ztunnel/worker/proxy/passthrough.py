"""Plaintext connections to pods (15006): authorized without an identity, and delivered where they were going."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from ztunnel.core.decide import inbound
from ztunnel.core.errors import ZtunnelError
from ztunnel.core.model.address import from_sockaddr
from ztunnel.core.model.connection import Connection, Direction, Refusal
from ztunnel.core.model.workload import Workload
from ztunnel.worker.engine.ending import Ending
from ztunnel.worker.proxy.connections import Carried
from ztunnel.worker.proxy.edges import EdgeNumbers
from ztunnel.worker.proxy.kit import Kit
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
        self._edges = EdgeNumbers(kit)

    def take(self, sock: socket.socket, peer: Any) -> None:
        """A connection was accepted; owns the socket."""
        kit, pod = self._kit, self._pod
        carried = Carried(kit, pod, Direction.INBOUND, from_sockaddr(peer), sock)
        carried.destination = carried.original = original_destination(sock, pod.capture)
        if carried.original is None:
            carried.refuse(Refusal("CONNECT", 503, "its original destination cannot be recovered"))
            return
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
        delivery = inbound.deliver_plain(
            kit.store, own=own, destination=carried.original, illegal_ports=kit.settings.illegal_ports
        )
        if isinstance(delivery, Refusal):
            carried.refuse(delivery)
            return
        carried.actual = delivery.target
        carried.authorized = Connection(None, carried.source, delivery.target)
        carried.identify(
            self._edges.number(
                Direction.INBOUND,
                source=kit.store.workload_at(kit.settings.network, carried.source.ip),
                destination=own,
                service=delivery.service,
            ),
            delivery.why,
        )
        verdict = kit.authorizer.check(own, carried.authorized)
        if not verdict.allowed:
            carried.refuse(Refusal("DENY", 401, f"connection closed due to policy rejection: {verdict.why}"))
            return
        try:
            far = upstream_socket(kit, pod, carried.source, delivery.target)
        except OSError as error:
            carried.ended(Ending(f"no socket for {delivery.target}: {error.strerror}"))
            return
        join(kit, carried, far)
