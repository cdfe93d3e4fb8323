"""Two agents in one process and on one loop: a client's outbound role, a server's inbound role, a real tunnel between.

What the kernel's capture would do is replaced by sockets of our own on loopback, which nothing else has to make way
for: a listener whose address is the service's VIP stands for the captured connection, another for port 15008. From
there on it is the worker's own code, from the accepted socket to the Flow of both sides.
"""

from __future__ import annotations

import random
import socket
import time
from functools import partial
from types import TracebackType
from typing import NamedTuple, Self

from benches.instructions.tunnels import CLIENT, SERVER, once_ready, turn_until
from ztunnel.config import Settings
from ztunnel.control.identity.ca import MemoryCa
from ztunnel.core.model.address import Address, NetworkAddress
from ztunnel.core.model.capture import CaptureMode
from ztunnel.core.model.identity import Identity
from ztunnel.core.model.policy import Action, Match, MatchKind, Policy, PolicyScope, StringMatch
from ztunnel.core.model.service import Service
from ztunnel.core.model.workload import Protocol, Workload
from ztunnel.link.messages import PodAdded, StateSlice
from ztunnel.linux.sockets import accept
from ztunnel.worker.engine.h2 import Tunnel
from ztunnel.worker.engine.loop import Loop
from ztunnel.worker.proxy.certificates import Certificates
from ztunnel.worker.proxy.connections import OUTBOUND, Carried, Connections
from ztunnel.worker.proxy.dial import PoolKey, expect
from ztunnel.worker.proxy.kit import Kit
from ztunnel.worker.proxy.ledger import Ledger
from ztunnel.worker.proxy.pod import NodeListeners, Pod
from ztunnel.worker.proxy.pool import _Line
from ztunnel.worker.state.store import Store

VIP, SERVER_IP, CLIENT_IP = "127.0.0.3", "127.0.0.2", "127.0.0.1"


class Size(NamedTuple):
    """How much of everything there is beside what is measured."""

    workloads: int = 10
    pods: int = 1
    """Of each agent."""
    connections: int = 10
    """Open elsewhere in each agent: records without sockets."""
    peers: int = 1
    """Others that the client's pod has a line to."""
    streams: int = 2
    """Open and idle in the tunnel."""


class _NoListeners(NodeListeners):
    def add(self, pod: Pod) -> None:
        pass

    def discard(self, pod: Pod) -> None:
        pass


def workload(name: str, ip: str, **fields: object) -> Workload:
    return Workload(
        uid=f"Kubernetes//Pod/demo/{name}",
        name=name,
        namespace="demo",
        service_account=name,
        workload_ips=(ip,),
        protocol=Protocol.HBONE,
        workload_name=name,
        canonical_name=name,
        canonical_revision="v1",
        **fields,  # type: ignore[arg-type]
    )


def crowd(count: int) -> StateSlice:
    """Workloads that have nothing to do with it: each a pod of its own service with its own address."""
    ips = [f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}" for number in range(count)]
    return StateSlice(
        workloads=tuple(
            workload(f"pod-{number:05}", ip, services={f"demo/service-{number:05}.demo": {80: 8080}})
            for number, ip in enumerate(ips)
        ),
        services=tuple(
            Service(
                name=f"service-{number:05}",
                namespace="demo",
                hostname=f"service-{number:05}.demo",
                vips=(NetworkAddress("", f"172.{ip[3:]}"),),
                ports={80: 8080},
            )
            for number, ip in enumerate(ips)
        ),
    )


def three_policies() -> tuple[Policy, ...]:
    """A DENY and an ALLOW that do not match, and the ALLOW that lets the client in."""

    def policy(name: str, action: Action, match: Match) -> Policy:
        return Policy(name=name, namespace="demo", scope=PolicyScope.NAMESPACE, action=action, rules=(((match,),),))

    prefix, exact = MatchKind.PREFIX, MatchKind.EXACT
    return (
        policy("a-deny", Action.DENY, Match(principals=(StringMatch(prefix, "other.domain/"),))),
        policy("b-allow", Action.ALLOW, Match(source_ips=("192.168.0.0/16", "172.16.0.0/12"))),
        policy(
            "c-allow",
            Action.ALLOW,
            Match(principals=(StringMatch(exact, CLIENT.principal),), namespaces=(StringMatch(exact, "demo"),)),
        ),
    )


def _listener(ip: str) -> socket.socket:
    sock = socket.create_server((ip, 0), backlog=16)
    sock.setblocking(False)
    return sock


class Agents:
    """A context manager; inside it the tunnel between both agents is open."""

    def __init__(self, size: Size) -> None:
        self._listeners = self._captured, self._tunnelled, self._application = (
            _listener(VIP),
            _listener(SERVER_IP),
            _listener(SERVER_IP),
        )
        self.vip = Address(*self._captured.getsockname())
        self.next_hop = Address(*self._tunnelled.getsockname())
        self.loop = Loop()
        self.store = self._mesh(size.workloads)
        client, server = self._agent(), self._agent()
        self.kits = client, server
        self._pods: list[Pod] = []
        for _ in range(size.pods):
            self.client = self._pod(client, CLIENT, CLIENT_IP)
            self.server = self._pod(server, SERVER, SERVER_IP)
        self._connect_tunnel()
        self._fill(size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for sock in self._idle:
            sock.close()
        for pod in self._pods:
            pod.close("the measurement is over")
        self.loop.shutdown()
        for sock in self._listeners:
            sock.close()

    # ---- what is measured ----

    def open(self) -> tuple[socket.socket, socket.socket]:
        """A connection of the client's application to the service, carried to the server's: both ends."""
        app = socket.socket()
        app.connect(self.vip)
        app.setblocking(False)
        captured, peer = once_ready(self.loop, partial(accept, self._captured, socket.AF_INET))
        self.client.outbound.take(captured, peer)
        served, _ = once_ready(self.loop, self._application.accept)
        served.setblocking(False)
        return app, served

    def close(self, app: socket.socket, served: socket.socket) -> None:
        """FIN from the client, then from the server; until both agents have written their Flow."""
        left = [len(kit.connections) - 1 for kit in self.kits]
        app.shutdown(socket.SHUT_WR)
        if once_ready(self.loop, lambda: served.recv(1)):
            raise RuntimeError("bytes where the end should be")
        served.close()
        turn_until(self.loop, lambda: [len(kit.connections) for kit in self.kits] == left)
        app.close()

    # ---- how it is made ----

    def _mesh(self, workloads: int) -> Store:
        store = Store()
        store.apply(crowd(workloads))
        port = self._application.getsockname()[1]
        service = Service(
            name="web",
            namespace="demo",
            hostname="web.demo",
            vips=(NetworkAddress("", VIP),),
            ports={self.vip.port: port},
        )
        server = workload(SERVER.service_account, SERVER_IP, services={"demo/web.demo": {}})
        store.apply(
            StateSlice(
                workloads=(workload(CLIENT.service_account, CLIENT_IP), server),
                services=(service,),
                policies=three_policies(),
            )
        )
        return store

    def _agent(self) -> Kit:
        settings = Settings(
            inbound_port=self.next_hop.port, packet_mark=None, enable_orig_src=False, same_node_join=False
        )
        return Kit(
            loop=self.loop,
            settings=settings,
            store=self.store,
            certificates=Certificates(lambda wanted: None, time.time),
            ledger=Ledger(self.loop, lambda told: True),
            connections=Connections(),
            spawn=_never,
            random=random.Random(1),
        )

    def _pod(self, kit: Kit, identity: Identity, ip: str) -> Pod:
        added = PodAdded(
            uid=f"pod-{len(self._pods)}",
            name=identity.service_account,
            namespace=identity.namespace,
            service_account=identity.service_account,
            capture=CaptureMode.NODE,
            ips=(ip,),
        )
        pod = Pod(kit, added, accepting=False, shared=_NoListeners(kit))
        self._pods.append(pod)
        return pod

    def _connect_tunnel(self) -> None:
        """What `pool.wait` does, by hand."""
        now = time.time()
        ca = MemoryCa(now=now)
        for kit, identity in zip(self.kits, (CLIENT, SERVER), strict=True):
            kit.certificates.issued(ca.issue(identity, ttl=3600.0, now=now).message(identity))
        kit, pool = self.kits[0], self.client.outbound.pool
        near = socket.socket()
        near.connect(self.next_hop)
        near.setblocking(False)
        key = PoolKey(CLIENT, (SERVER,), self.next_hop)
        line = pool._lines[key] = _Line(pool, key)
        credentials = kit.certificates.get(CLIENT)
        assert credentials is not None
        session = credentials.client.session(self.loop.scratch, expect(key.destinations))
        pool.live.add(Tunnel(self.loop, near, session, line, kit.tunnel_settings, client=True))
        far, peer = once_ready(self.loop, self._tunnelled.accept)
        far.setblocking(False)
        self.server.inbound.take(far, peer)
        turn_until(self.loop, lambda: any(tunnel.settled for tunnel in line.tunnels))

    def _fill(self, size: Size) -> None:
        """Everything that should make no difference."""
        pool = self.client.outbound.pool
        for number in range(size.peers):
            key = PoolKey(CLIENT, (Identity("cluster.local", "demo", f"peer-{number}"),), Address("10.0.0.1", 15008))
            pool._lines[key] = _Line(pool, key)
        for pod in (self.client, self.server):
            for number in range(size.connections):
                carried = Carried(pod, OUTBOUND, Address("10.0.0.1", 1024 + number), None)
                carried.ended_already = True
        self._idle = [sock for _ in range(size.streams) for sock in self.open()]


def _never(_task: object) -> None:
    raise RuntimeError("a set-up waits for something, though everything is there")
