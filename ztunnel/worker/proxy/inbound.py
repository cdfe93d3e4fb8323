"""Tunnels that peers open to pods (15008): authenticated, checked, authorized, and delivered to the application.

The order of checks and the answers are ztunnel's outcome catalogue: 400 for what is wrong with the request, 503 for
what cannot be fulfilled, 401 for what policies deny. Policies are evaluated before the application is dialled.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from ztunnel.core.decide import inbound
from ztunnel.core.decide.edges import edge
from ztunnel.core.errors import PeerError, ZtunnelError
from ztunnel.core.model.address import Address, from_sockaddr
from ztunnel.core.model.connection import Connection, Direction, Refusal
from ztunnel.core.model.identity import Identity, parse_identity
from ztunnel.core.model.workload import Workload
from ztunnel.core.wire import connect, frames
from ztunnel.worker.engine.ending import Ending
from ztunnel.worker.engine.h2 import Tunnel
from ztunnel.worker.engine.stream import Stream
from ztunnel.worker.engine.tcp import abort_on_close
from ztunnel.worker.engine.tls import Verify
from ztunnel.worker.proxy.certificates import Credentials
from ztunnel.worker.proxy.connections import Carried, Terms
from ztunnel.worker.proxy.kit import Kit
from ztunnel.worker.proxy.memo import Memo
from ztunnel.worker.proxy.upstream import upstream_socket

if TYPE_CHECKING:
    from ztunnel.worker.proxy.pod import Pod

Headers = list[tuple[bytes, bytes]]

_REFUSALS = {status: frames.encode_header(":status", str(status)) for status in (400, 401, 431, 503)}


class Inbound:
    """The inbound HBONE role of one pod."""

    def __init__(self, kit: Kit, pod: Pod) -> None:
        self.kit = kit
        self.pod = pod
        self.tunnels: set[Peer] = set()
        self._waiting: set[socket.socket] = set()
        """Accepted, but their handshake cannot begin without our certificate."""
        self._answer: tuple[Workload, bytes] | None = None
        self._terms: Memo[tuple[object, ...], Terms] = Memo(kit.store)

    def take(self, sock: socket.socket, peer: Any) -> None:
        """A peer's connection was accepted; owns the socket."""
        source = from_sockaddr(peer)
        workload = self.pod.workload()
        credentials = self.kit.certificates.get(workload.identity) if workload is not None else None
        if credentials is None:
            self._waiting.add(sock)
            self.kit.spawn(lambda: self._later(sock, source))
        else:
            self._serve(sock, source, credentials)

    async def _later(self, sock: socket.socket, source: Address) -> None:
        try:
            await self.pod.wait_for_workload()
            credentials = await self.kit.certificates.wait(self.pod.identity())
        except ZtunnelError as error:
            self._give_up(sock)
            self.refused(source, Refusal(error.flag, error.status, str(error)))
            return
        if sock in self._waiting:
            self._waiting.discard(sock)
            self._serve(sock, source, credentials)

    def _give_up(self, sock: socket.socket) -> None:
        if sock in self._waiting:
            self._waiting.discard(sock)
            abort_on_close(sock)
            self.kit.loop.close(sock)

    def _serve(self, sock: socket.socket, source: Address, credentials: Credentials) -> None:
        kit = self.kit
        try:
            local = from_sockaddr(sock.getsockname())
            session = credentials.server.session(kit.loop.scratch, same_trust_domain(credentials.issued.identity))
        except (OSError, ZtunnelError) as error:
            kit.loop.close(sock)
            self.refused(source, Refusal("TLS_FAILURE", 503, str(error)))
            return
        peer = Peer(self, source, local)
        self.tunnels.add(peer)
        peer.tunnel = Tunnel(kit.loop, sock, session, peer, kit.tunnel_settings, client=False)
        kit.strangers.add(peer.tunnel)

    def refused(self, source: Address, refusal: Refusal, authority: str = "") -> None:
        """An early deny: nobody is known yet."""
        local = Address(self.pod.ip, self.kit.settings.inbound_port) if self.pod.ip else None
        self.kit.ledger.refused(Direction.INBOUND, source, local, refusal, authority)

    def decide(self, own: Workload, peer: Peer, request: connect.ConnectRequest) -> Terms | Refusal:
        """Where a request is delivered and who makes it; remembered until the mesh changes."""
        key = (peer.source.ip, peer.local, peer.identity, request.target, request.forwarded_host)
        known = self._terms.get(key)
        if known is not None:
            return known
        kit, settings = self.kit, self.kit.settings
        delivery = inbound.deliver(
            kit.store,
            own=own,
            local=peer.local,
            target=request.target,
            network=settings.network,
            illegal_ports=settings.illegal_ports,
            forwarded_host=request.forwarded_host,
        )
        if isinstance(delivery, Refusal):
            return delivery
        who = edge(
            Direction.INBOUND,
            source=kit.store.workload_at(settings.network, peer.source.ip),
            destination=own,
            service=delivery.service,
            mutual_tls=True,
            peer=peer.identity,
        )
        terms = Terms(
            direction=Direction.INBOUND,
            destination=peer.local,
            actual=delivery.target,
            authority=request.authority,
            edge=kit.ledger.number(who),
            why=delivery.why,
            authorized=True,
            identity=peer.identity,
        )
        return self._terms.keep(key, terms)

    def answer(self, workload: Workload) -> bytes:
        """The header block of a 200, encoded once per version of the workload."""
        if self._answer is None or self._answer[0] is not workload:
            block = frames.RESPONSE_200
            if self.kit.settings.enable_response_baggage:
                block += frames.encode_header("baggage", connect.baggage(workload))
            self._answer = (workload, block)
        return self._answer[1]

    def drain(self) -> None:
        for peer in list(self.tunnels):
            peer.tunnel.drain()

    def close(self, why: str) -> None:
        for sock in list(self._waiting):
            self._give_up(sock)
        for peer in list(self.tunnels):
            peer.tunnel.close(Ending(why))


class Peer:
    """One tunnel of a peer; the engine's TunnelOwner."""

    def __init__(self, role: Inbound, source: Address, local: Address) -> None:
        self.role = role
        self.source = source
        self.local = local
        self.identity: Identity | None = None
        self.tunnel: Tunnel

    def secured(self, tunnel: Tunnel) -> None:
        kit = self.role.kit
        kit.strangers.discard(tunnel)
        kit.prefaces.add(tunnel)
        self.identity = _first_identity(tunnel.session.peer_names, self.role.pod.identity().trust_domain)

    def ready(self, tunnel: Tunnel) -> None:
        self.role.kit.settled(tunnel)

    def changed(self, tunnel: Tunnel) -> None:
        pass

    def closed(self, tunnel: Tunnel, ending: Ending) -> None:
        kit = self.role.kit
        kit.strangers.discard(tunnel)
        kit.prefaces.discard(tunnel)
        kit.keepalive.discard(tunnel)
        self.role.tunnels.discard(self)
        if not ending.ok and (not tunnel.settled or ending.flag == PeerError.flag):
            self.role.refused(self.source, Refusal(ending.flag, 503, ending.error))

    # ---- requests ----

    def requested(self, stream: Stream, headers: Headers) -> None:
        """A CONNECT arrived: the same `_attempt` now, or once the pod's workload is known."""
        try:
            request = connect.check_request(headers)
        except connect.WireError as error:
            self._refuse_early(stream, Refusal("CONNECT", 400, str(error)), "")
            return
        if self._attempt(stream, request, headers):
            return

        async def later() -> None:
            try:
                await self.role.pod.wait_for_workload()
            except ZtunnelError as error:
                if not stream.closed:
                    self._refuse_early(stream, Refusal(error.flag, 503, str(error)), request.authority)
                return
            if not stream.closed:
                self._attempt(stream, request, headers)

        self.role.kit.spawn(later)

    def _attempt(self, stream: Stream, request: connect.ConnectRequest, headers: Headers) -> bool:
        """False when the pod's own workload is not known."""
        kit, pod = self.role.kit, self.role.pod
        own = pod.workload()
        if own is None:
            return False
        terms = self.role.decide(own, self, request)
        if isinstance(terms, Refusal):
            self._refuse_early(stream, terms, request.authority)
            return True
        assert terms.actual is not None
        carried = Carried(pod, terms, self.source, None)
        carried.original = terms.actual
        carried.carrier = stream
        stream.owner = carried
        carried.identify(terms)
        verdict = kit.authorizer.check(own, Connection(self.identity, self.source, terms.actual))
        if not verdict.allowed:
            self._refuse(
                stream, carried, Refusal("DENY", 401, f"connection closed due to policy rejection: {verdict.why}")
            )
            return True
        self._deliver(stream, carried, terms.actual, own, headers)
        return True

    def _deliver(self, stream: Stream, carried: Carried, target: Address, own: Workload, headers: Headers) -> None:
        kit = self.role.kit
        try:
            sock = upstream_socket(kit, self.role.pod, self.source, target)
        except OSError as error:
            self._refuse(stream, carried, Refusal("CONNECT", 503, f"no socket for {target}: {error.strerror}"))
            return

        def connected(error: OSError | None) -> None:
            if error is not None:
                kit.loop.close(sock)
                why = f"cannot connect to {target}: {error.strerror}"
                self._refuse(stream, carried, Refusal("CONNECT", 503, why))
                return
            answer = self.role.answer(own)
            if not kit.joins.accept(kit, headers, carried, stream, sock, answer):
                stream.attach(sock)
                self.tunnel.accept(stream, answer, carried)

        carried.dial(sock, target, connected)

    def _refuse(self, stream: Stream, carried: Carried, refusal: Refusal) -> None:
        stream.owner = None
        self.tunnel.refuse(stream, _REFUSALS[refusal.status])
        carried.refuse(refusal)

    def _refuse_early(self, stream: Stream, refusal: Refusal, authority: str) -> None:
        self.tunnel.refuse(stream, _REFUSALS[refusal.status])
        self.role.refused(self.source, refusal, authority)


def same_trust_domain(own: Identity) -> Verify:
    """Accepts a client that proves a SPIFFE identity of our trust domain."""

    def verify(names: tuple[str, ...]) -> str | None:
        identities = [identity for identity in map(_identity, names) if identity is not None]
        if any(identity.trust_domain == own.trust_domain for identity in identities):
            return None
        who = ", ".join(names) or "nobody (its certificate has no SPIFFE identity)"
        return f"the client is {who}, not of trust domain {own.trust_domain}"

    return verify


def _identity(name: str) -> Identity | None:
    try:
        return parse_identity(name)
    except ValueError:
        return None


def _first_identity(names: tuple[str, ...], trust_domain: str) -> Identity | None:
    """Of our trust domain: a name of another one was not verified by anybody and decides nothing."""
    identities = (identity for identity in map(_identity, names) if identity is not None)
    return next((identity for identity in identities if identity.trust_domain == trust_domain), None)
