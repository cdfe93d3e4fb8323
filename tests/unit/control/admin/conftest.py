"""An agent to look at, and ways to ask its HTTP servers: the application alone, or over real sockets."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

import msgspec
import pytest
import trio

from ztunnel.config import Settings
from ztunnel.control.admin.source import AdminSource, MeshView, PodView
from ztunnel.control.admin.web import Limits, serve
from ztunnel.core.model.address import NamespacedHostname, NetworkAddress
from ztunnel.core.model.policy import Action, Match, MatchKind, Policy, PolicyScope, ServiceAccountMatch, StringMatch
from ztunnel.core.model.service import (
    BalanceMode,
    CidrVip,
    HealthPolicy,
    IpFamilies,
    LoadBalancer,
    Scope,
    Service,
    WeightedWaypoint,
)
from ztunnel.core.model.workload import (
    ApplicationTunnel,
    GatewayAddress,
    Health,
    Locality,
    NetworkMode,
    Protocol,
    TunnelProtocol,
    Workload,
)
from ztunnel.link.messages import OpenConnection
from ztunnel.observe.log_filter import LogFilter, parse_filter

App = Callable[..., Awaitable[None]]

WAYPOINT = GatewayAddress(NetworkAddress("", "10.96.0.7"), by_hostname=False)
RICH = Workload(
    uid="Kubernetes//Pod/b/server-1",
    name="server-1",
    namespace="b",
    workload_ips=("10.0.0.2", "fd00::2"),
    network="net1",
    protocol=Protocol.HBONE,
    network_mode=NetworkMode.STANDARD,
    service_account="server",
    node="node-2",
    workload_name="server",
    workload_type="deployment",
    canonical_name="server",
    canonical_revision="v1",
    native_tunnel=True,
    application_tunnel=ApplicationTunnel(TunnelProtocol.PROXY, 8443),
    waypoint=WAYPOINT,
    network_gateway=GatewayAddress(NamespacedHostname("gw", "gw.example.com"), by_hostname=True),
    authorization_policies=("b/deny-all",),
    status=Health.UNHEALTHY,
    locality=Locality("r1", "z1", ""),
    capacity=2,
    services={"b/s.b.svc.cluster.local": {80: 8080}, "b/unknown.b.svc": {1: 2}},
)
PLAIN = Workload(uid="Kubernetes//Pod/a/client-1", name="client-1", namespace="a", workload_ips=("10.0.0.1",))
SERVICE = Service(
    name="s",
    namespace="b",
    hostname="s.b.svc.cluster.local",
    vips=(NetworkAddress("net1", "10.96.0.9"),),
    cidr_vips=(CidrVip("net1", "10.97.0.0", 16),),
    ports={80: 8080},
    subject_alt_names=("spiffe://td/ns/b/sa/server",),
    waypoint=WAYPOINT,
    weighted_waypoints=(WeightedWaypoint(WAYPOINT, 3),),
    load_balancer=LoadBalancer((Scope.REGION,), BalanceMode.STRICT, HealthPolicy.ALLOW_ALL),
    ip_families=IpFamilies.DUAL,
    canonical=True,
)
WAYPOINT_SERVICE = Service(name="wp", namespace="b", hostname="wp.b.svc", vips=(NetworkAddress("", "10.96.0.7"),))
POLICY = Policy(
    name="deny-all",
    namespace="b",
    scope=PolicyScope.WORKLOAD_SELECTOR,
    action=Action.DENY,
    rules=(
        (
            (
                Match(
                    namespaces=(StringMatch(MatchKind.EXACT, "a"), StringMatch(MatchKind.PRESENCE)),
                    not_principals=(StringMatch(MatchKind.PREFIX, "td/"),),
                    service_accounts=(ServiceAccountMatch("a", "client"),),
                    source_ips=("10.0.0.0/8",),
                    not_destination_ports=(22,),
                ),
            ),
        ),
    ),
    dry_run=True,
)
MESH = MeshView(workloads=(RICH, PLAIN), services=(SERVICE, WAYPOINT_SERVICE), policies=(POLICY,))
CONNECTION = OpenConnection(
    id=7,
    pod="uid-1",
    edge=1,
    direction="outbound",
    protocol="HBONE",
    source="10.0.0.1:5000",
    original_destination="10.96.0.9:80",
    actual_destination="10.0.0.2:15008",
    opened=1_724_255_801.5,
    bytes_sent=10,
    bytes_received=20,
    why="endpoint of s.b.svc.cluster.local",
)
INBOUND = msgspec.structs.replace(CONNECTION, id=8, direction="inbound", original_destination="")
CERTIFICATE = {
    "identity": "spiffe://td/ns/a/sa/client",
    "state": "Available",
    "certChain": [
        {
            "pem": "LS0t",
            "serialNumber": "305554775863395697262503895661564044819",
            "validFrom": "2023-03-21T13:02:57Z",
            "expirationTime": "2033-03-22T13:04:57Z",
        }
    ],
    "rootCerts": [],
}


class FakeAgent:
    """Fills an AdminSource and remembers what it was told."""

    def __init__(self) -> None:
        self.filter: LogFilter = parse_filter("info")
        self.quits = 0
        self.waiting_for: list[str] = []
        self.mesh = MESH
        self.settings = Settings(
            xds_headers={"authorization": "Bearer s3cret"}, auth_token="s3cret", node_name="node-1"
        )

    def source(self) -> AdminSource:
        async def mesh() -> MeshView:
            return self.mesh

        async def static() -> MeshView:
            return MeshView(policies=(POLICY,))

        async def connections() -> list[OpenConnection]:
            return [CONNECTION, INBOUND]

        async def metrics(as_openmetrics: bool) -> bytes:
            return b"# EOF\n" if as_openmetrics else b"# text\n"

        return AdminSource(
            settings=self.settings,
            version="0.1.0",
            crypto_provider="OpenSSL 3",
            mesh=mesh,
            static=static,
            certificates=lambda: [CERTIFICATE],
            pods=lambda: [PodView(uid="uid-1", name="client-1", namespace="a", service_account="client", up=True)],
            connections=connections,
            metrics=metrics,
            pending=lambda: self.waiting_for,
            log_filter=lambda: str(self.filter),
            change_log_filter=self._change_log_filter,
            quit=self._quit,
        )

    def _change_log_filter(self, spec: str, reset: bool) -> str:
        self.filter = (parse_filter("info") if reset else self.filter).adding(spec)
        return str(self.filter)

    def _quit(self) -> None:
        self.quits += 1


@pytest.fixture
def agent() -> FakeAgent:
    return FakeAgent()


class Reply(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


class Ask:
    """Calls an application directly, as a server would."""

    async def __call__(
        self, app: App, target: str, method: str = "GET", headers: Mapping[str, str] | None = None
    ) -> Reply:
        path, _, query = target.partition("?")
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        wire = {"host": "localhost:15000"} | dict(headers or {})
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(name.encode(), value.encode()) for name, value in wire.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 15000),
        }
        await app(scope, receive, send)
        answered = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return Reply(sent[0]["status"], answered, b"".join(message.get("body", b"") for message in sent[1:]))


@pytest.fixture
def ask() -> Ask:
    return Ask()


class Web:
    """Serves applications on loopback ports of their own and speaks bytes to them."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    async def serve(self, app: App, limits: Limits | None = None) -> int:
        sock = socket.create_server(("127.0.0.1", 0))
        await self._nursery.start(serve, app, [sock], limits)
        port: int = sock.getsockname()[1]
        return port

    async def connect(self, port: int) -> trio.SocketStream:
        sock = trio.socket.socket()
        await sock.connect(("127.0.0.1", port))
        return trio.SocketStream(sock)

    async def exchange(self, port: int, data: bytes) -> bytes:
        """All that the server answers to these bytes until it closes."""
        async with await self.connect(port) as stream:
            await stream.send_all(data)
            return await read_to_end(stream)


async def read_to_end(stream: trio.SocketStream) -> bytes:
    received = b""
    try:
        while piece := await stream.receive_some():
            received += piece
    except trio.BrokenResourceError:
        received += b"<reset>"
    return received


@pytest.fixture
def web(nursery: trio.Nursery) -> Web:
    return Web(nursery)
