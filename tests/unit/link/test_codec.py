"""What is decoded is what was encoded, of every message and down to the types; anything else is refused."""

import typing

import msgspec
import pytest
from mesh_samples import gateway_at, service, workload

from ztunnel.core.model.address import Address, NamespacedHostname, NetworkAddress
from ztunnel.core.model.capture import CaptureMode
from ztunnel.core.model.connection import Direction
from ztunnel.core.model.flow import Edge, Flow, Party
from ztunnel.core.model.identity import Identity
from ztunnel.core.model.policy import Action, Match, MatchKind, Policy, PolicyScope, StringMatch
from ztunnel.core.model.service import CidrVip, HealthPolicy, LoadBalancer, Scope, WeightedWaypoint
from ztunnel.core.model.workload import GatewayAddress
from ztunnel.link.codec import CONTROL, SIBLING, WORKER, UndecodableError
from ztunnel.link.messages import (
    Answer,
    Ask,
    CertificateFailed,
    CertificateForgotten,
    CertificateIssued,
    CertificateWanted,
    Counters,
    Down,
    Drain,
    Drained,
    EdgeDefined,
    Flows,
    JoinAnswered,
    JoinCounts,
    JoinCountsWanted,
    JoinCut,
    JoinEnded,
    JoinOffered,
    LogFilter,
    OpenConnection,
    PodAdded,
    PodAddresses,
    PodFailed,
    PodGone,
    PodReady,
    PodRemoved,
    Priority,
    Question,
    Resync,
    Serving,
    Sideways,
    StateSlice,
    StateSynced,
    Up,
)

WHO = Identity("cluster.local", "demo", "client")
BY_NAME = GatewayAddress(NamespacedHostname("demo", "waypoint.demo"), True)
STATE = StateSlice(
    workloads=(
        workload("a", "10.0.0.1", "fd00::1", backs={"demo/web.demo": {80: 8080}}, waypoint=gateway_at("10.0.0.9")),
        workload("b", "10.0.0.2", waypoint=BY_NAME, network_gateway=BY_NAME),
    ),
    services=(
        service(
            "web",
            "10.1.0.1",
            cidr_vips=(CidrVip("", "10.2.0.0", 16),),
            weighted_waypoints=(WeightedWaypoint(BY_NAME, 3),),
            load_balancer=LoadBalancer((Scope.ZONE,), health_policy=HealthPolicy.ALLOW_ALL),
        ),
    ),
    policies=(
        Policy(
            name="p",
            namespace="demo",
            scope=PolicyScope.GLOBAL,
            action=Action.DENY,
            rules=(((Match(principals=(StringMatch(MatchKind.PREFIX, "x"),), destination_ports=(80,)),),),),
        ),
    ),
    removed_workloads=("gone",),
    last=False,
)
FLOW = Flow(
    id=1,
    edge=7,
    direction=Direction.INBOUND,
    source=Address("fd00::1", 1),
    destination=None,
    started=1.5,
    duration=0.25,
    error="é",
)
ROW = OpenConnection(
    id=1,
    pod="p",
    edge=2,
    direction="inbound",
    protocol="TCP",
    source="a",
    original_destination="b",
    actual_destination="c",
    opened=1.0,
    bytes_sent=1 << 40,
    bytes_received=0,
    why="",
)
DOWN: list[Down] = [
    PodAdded(uid="u", name="n", namespace="d", service_account="s", capture=CaptureMode.TPROXY, ips=("10.0.0.1",)),
    PodRemoved("u"),
    STATE,
    StateSlice(),
    Resync(),
    StateSynced(),
    CertificateIssued(identity=WHO, chain_pem=b"\x00c", key_pem=b"k", roots_pem=b"\xff", not_before=1.0, not_after=2.0),
    CertificateFailed(WHO, "no"),
    CertificateForgotten(WHO),
    LogFilter("info"),
    Drain(2.5),
    Ask(3, Question.COUNTERS),
]
COUNTERS = Counters(opened={1: 2}, open_bytes={3: (4, 5)}, sockets={"inbound": 1})
UP: list[Up] = [
    Serving(()),
    Serving((DOWN[0],)),
    PodReady("u"),
    PodFailed("u", "no"),
    PodGone("u"),
    CertificateWanted(WHO, Priority.WARMUP),
    EdgeDefined(4, Edge(direction=Direction.OUTBOUND, source=Party(name="a"), destination=Party(zone="z"))),
    COUNTERS,
    Flows((FLOW, FLOW)),
    Answer(1, (ROW, ROW)),
    Answer(1, ()),
    Answer(2, COUNTERS),
    Answer(3, {"connections": 4}),
    Drained(0),
]
SIDEWAYS: list[Sideways] = [
    PodAddresses(("10.0.0.1", "fd00::1")),
    JoinOffered(1, "token", None),
    JoinAnswered(1, True),
    JoinCut(1, "no", "DENY"),
    JoinEnded(1, 1 << 40, 2, "", "-"),
    JoinCountsWanted(),
    JoinCounts({1: (2, 3)}),
]


def test_no_message_is_forgotten_here() -> None:
    assert {type(message) for message in SIDEWAYS} == set(typing.get_args(Sideways))
    assert {type(message) for message in DOWN} == set(typing.get_args(Down))
    assert {type(message) for message in UP} == set(typing.get_args(Up))


@pytest.mark.parametrize("message", DOWN, ids=lambda message: type(message).__name__)
def test_what_goes_down_is_the_same_below(message: Down) -> None:
    got = WORKER.decode(CONTROL.encode(message).data, [])
    assert got == message
    assert repr(got) == repr(message)


@pytest.mark.parametrize("message", UP, ids=lambda message: type(message).__name__)
def test_what_goes_up_is_the_same_above(message: Up) -> None:
    got = CONTROL.decode(WORKER.encode(message).data, [])
    assert got == message
    assert repr(got) == repr(message)


@pytest.mark.parametrize("message", SIDEWAYS, ids=lambda message: type(message).__name__)
def test_what_goes_sideways_is_the_same_beside(message: Sideways) -> None:
    assert SIBLING.decode(SIBLING.encode(message).data, []) == message


def test_a_socket_goes_beside_its_offer() -> None:
    encoded = SIBLING.encode(JoinOffered(1, "token", 5))
    assert encoded.fd == 5
    assert SIBLING.decode(encoded.data, [11]) == JoinOffered(1, "token", 11)


def test_a_gateway_keeps_the_kind_of_its_destination() -> None:
    got = WORKER.decode(CONTROL.encode(STATE).data, [])
    assert isinstance(got, StateSlice)
    first, second = got.workloads
    assert first.waypoint is not None
    assert second.waypoint is not None
    assert type(first.waypoint.destination) is NetworkAddress
    assert type(second.waypoint.destination) is NamespacedHostname


def test_a_descriptor_goes_beside_the_bytes() -> None:
    added = DOWN[0]
    assert isinstance(added, PodAdded)
    encoded = CONTROL.encode(msgspec.structs.replace(added, netns_fd=5))
    assert encoded.fd == 5
    assert WORKER.decode(encoded.data, [11]) == msgspec.structs.replace(added, netns_fd=11)


@pytest.mark.parametrize(
    ("data", "fds"),
    [
        (b"", []),
        (b"\xc1", []),
        (b"\x80", []),
        (msgspec.msgpack.encode({"type": "PodRemoved"}), []),
        (msgspec.msgpack.encode({"type": "Drained", "cut": 1}), []),
        (msgspec.msgpack.encode({"type": "PodRemoved", "uid": "u"}), [7]),
        (CONTROL.encode(msgspec.structs.replace(DOWN[0], netns_fd=5)).data, []),
        (CONTROL.encode(DOWN[0]).data, [7]),
    ],
)
def test_what_is_no_message_is_refused(data: bytes, fds: list[int]) -> None:
    with pytest.raises(UndecodableError):
        WORKER.decode(data, fds)


def test_an_answer_of_another_form_is_refused() -> None:
    with pytest.raises(UndecodableError):
        CONTROL.decode(msgspec.msgpack.encode({"type": "Answer", "id": 1, "body": [{"id": "x"}]}), [])
