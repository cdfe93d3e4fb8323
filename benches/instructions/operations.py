"""What is counted: hot operations one by one, and some of them among few and among many neighbours.

An operation prepares what it needs and gives a function that does it so many times. It must do the same work each
time, whatever the clock says and however busy the machine is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import NamedTuple

from benches.instructions.agents import SERVER_IP, Agents, Size, crowd, three_policies, workload
from benches.instructions.tunnels import CLIENT, Tunnels, transfer
from ztunnel.core.decide import rbac
from ztunnel.core.decide.outbound import route
from ztunnel.core.model.address import Address
from ztunnel.core.model.connection import Connection, Direction, Route
from ztunnel.core.model.flow import Edge, Flow, Party
from ztunnel.core.model.workload import Health
from ztunnel.core.wire import connect, frames
from ztunnel.link.messages import Flows, StateSlice, Up
from ztunnel.observe.access_lines import AccessLines, EdgeText
from ztunnel.observe.metrics import Metrics
from ztunnel.worker.engine.loop import Loop
from ztunnel.worker.proxy.ledger import FLUSH_FLOWS, Ledger
from ztunnel.worker.state.store import Store

Repeat = Callable[[int], None]


class Operation(NamedTuple):
    name: str
    prepare: Callable[[], AbstractContextManager[Repeat]]
    times: int = 64
    """Counted are as many and twice as many; the difference is the cost."""


# ---- decisions ----


@contextmanager
def routing(target: Address, neighbours: int) -> Iterator[Repeat]:
    """A target of `crowd(1)`: its only pod or its only service."""
    store = Store()
    store.apply(crowd(neighbours))
    source = workload("client", "10.200.0.1")
    store.apply(StateSlice(workloads=(source,)))
    ports = frozenset((15001, 15006, 15008))

    def repeat(times: int) -> None:
        for _ in range(times):
            route(store, source=source, target=target, network="", roll=0.5, illegal_ports=ports)

    yield repeat


@contextmanager
def authorizing() -> Iterator[Repeat]:
    policies = [rbac.compile_policy(policy) for policy in three_policies()]
    connection = Connection(CLIENT, Address("10.0.0.1", 40000), Address("10.0.0.2", 8080))
    assert rbac.evaluate(policies, (), connection).policy == "demo/c-allow"

    def repeat(times: int) -> None:
        for _ in range(times):
            rbac.evaluate(policies, (), connection)

    yield repeat


@contextmanager
def changing_state(neighbours: int) -> Iterator[Repeat]:
    """One workload falls ill and recovers."""
    store = Store()
    store.apply(crowd(neighbours))
    versions = [
        StateSlice(workloads=(workload("web", "10.200.0.1", services={"demo/web.demo": {80: 8080}}, status=health),))
        for health in (Health.HEALTHY, Health.UNHEALTHY)
    ]

    def repeat(times: int) -> None:
        for number in range(times):
            store.apply(versions[number & 1])

    yield repeat


# ---- requests ----


def _request(agents: Agents) -> Callable[[], bytes]:
    own = agents.client.workload()
    assert own is not None
    settings = agents.kits[0].settings
    chosen = route(
        agents.store,
        source=own,
        target=agents.vip,
        network="",
        roll=0.5,
        illegal_ports=settings.illegal_ports,
        hbone_port=settings.inbound_port,
    )
    assert isinstance(chosen, Route)
    form = agents.client.outbound.prepare(own, agents.vip, chosen).request
    assert form is not None
    client, random = Address("10.0.0.1", 40000), agents.kits[0].random.getrandbits
    return lambda: form.fill(client, random(128), random(64))


@contextmanager
def building_requests() -> Iterator[Repeat]:
    with Agents(Size()) as agents:
        request = _request(agents)

        def repeat(times: int) -> None:
            for _ in range(times):
                request()

        yield repeat


@contextmanager
def reading_requests() -> Iterator[Repeat]:
    with Agents(Size()) as agents:
        block = _request(agents)()
    headers = frames.decode_plain(block)
    assert headers is not None
    assert connect.check_request(headers).authority.startswith(SERVER_IP)

    def repeat(times: int) -> None:
        for _ in range(times):
            connect.check_request(frames.decode_plain(block) or [])

    yield repeat


# ---- bytes ----


@contextmanager
def sending(size: int, pieces: int, *, back: bool) -> Iterator[Repeat]:
    data = bytes(size)
    with Tunnels() as tunnels:
        app, served = tunnels.open()

        def repeat(times: int) -> None:
            for _ in range(times):
                for _ in range(pieces):
                    transfer(tunnels.loop, app, served, data)
                    if back:
                        transfer(tunnels.loop, served, app, data)

        with app, served:
            yield repeat


@contextmanager
def opening_streams(neighbours: int) -> Iterator[Repeat]:
    with Tunnels(neighbours) as tunnels:

        def repeat(times: int) -> None:
            for _ in range(times):
                tunnels.close(*tunnels.open())

        yield repeat


@contextmanager
def opening_tunnels() -> Iterator[Repeat]:
    def repeat(times: int) -> None:
        for _ in range(times):
            with Tunnels():
                pass

    yield repeat


# ---- connections ----


@contextmanager
def connecting(size: Size) -> Iterator[Repeat]:
    with Agents(size) as agents:

        def repeat(times: int) -> None:
            for _ in range(times):
                app, served = agents.open()
                transfer(agents.loop, app, served, b"?")
                transfer(agents.loop, served, app, b"!")
                agents.close(app, served)

        yield repeat


# ---- what is told of them ----

_PARTY = Party(name="client-1", workload="client", namespace="demo", identity=str(CLIENT), cluster="Kubernetes")
_EDGE = Edge(
    direction=Direction.OUTBOUND, source=_PARTY, destination=_PARTY, service_hostname="web.demo", mutual_tls=True
)
_FLOW = Flow(
    id=1,
    edge=0,
    direction=Direction.OUTBOUND,
    source=Address("10.0.0.1", 40000),
    destination=Address("10.0.0.2", 15008),
    hbone_address="10.0.0.2:8080",
    started=1_800_000_000.25,
    duration=1.5,
    bytes_sent=1234,
    bytes_received=5678,
    why="service demo/web: endpoint web-1 of 1, HBONE",
)


@contextmanager
def counting_flows() -> Iterator[Repeat]:
    """From the worker's ledger to the control half's metrics, as many as make a batch at once."""
    metrics = Metrics(version="0")
    metrics.define_edge(0, 0, _EDGE)

    def tell(message: Up) -> bool:
        if isinstance(message, Flows):
            metrics.finish(0, message.flows)
        return True

    loop = Loop()
    ledger = Ledger(loop, tell)

    def repeat(times: int) -> None:
        for _ in range(times):
            ledger.opened(0)
            ledger.finished(_FLOW)

    yield repeat
    loop.shutdown()


@contextmanager
def writing_access_lines() -> Iterator[Repeat]:
    lines, text = AccessLines(), EdgeText(_EDGE)

    def repeat(times: int) -> None:
        for _ in range(times):
            lines.line(_FLOW, text)

    yield repeat


_POD, _SERVICE = Address("10.0.0.0", 8080), Address("172.0.0.0", 80)
"""Of the first in `crowd`."""

HOT = (
    Operation("route to a pod's address", partial(routing, _POD, 10)),
    Operation("route to a service of one endpoint", partial(routing, _SERVICE, 10)),
    Operation("authorize against 3 policies", authorizing),
    Operation("build a CONNECT request", building_requests),
    Operation("read a CONNECT request", reading_requests),
    Operation("apply a change of one workload", partial(changing_state, 10)),
    Operation("send 64 bytes there and back, two tunnel ends", partial(sending, 64, 1, back=True)),
    Operation("send 1 MiB in 64 KiB pieces, two tunnel ends", partial(sending, 65536, 16, back=False), 8),
    Operation("open and close a stream, two tunnel ends", partial(opening_streams, 0)),
    Operation("open and close a tunnel, both ends", opening_tunnels, 4),
    Operation("carry a connection, both agents", partial(connecting, Size()), 32),
    Operation("count a finished connection", counting_flows, FLUSH_FLOWS),
    Operation("write an access-log line", writing_access_lines),
)
"""Names are the keys of baseline.json."""


class Claim(NamedTuple):
    """The cost of something must not depend on how much there is beside it."""

    what: str
    few: Operation
    many: Operation


def _claim(
    what: str, few: str, many: str, prepare: Callable[[bool], Callable[[], AbstractContextManager[Repeat]]]
) -> Claim:
    return Claim(what, Operation(f"{what}: {few}", prepare(False), 32), Operation(f"{what}: {many}", prepare(True), 32))


_MANY = Size(workloads=5_000, pods=100, connections=5_000, peers=1_000, streams=90)

CLAIMS = (
    _claim("route", "10 workloads", "10,000", lambda many: partial(routing, _SERVICE, 10_000 if many else 10)),
    _claim("change of state", "10 workloads", "10,000", lambda many: partial(changing_state, 10_000 if many else 10)),
    _claim("stream", "2 open in its tunnel", "150", lambda many: partial(opening_streams, 150 if many else 2)),
    _claim("connection", "few of everything", "many", lambda many: partial(connecting, _MANY if many else Size())),
)
