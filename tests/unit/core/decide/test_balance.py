"""Endpoint choice: who is a candidate, locality, weights, target ports, and the address to use."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mesh_samples import gateway_at, mesh, service, workload

from ztunnel.core.decide.balance import Choice, choose, draw, settle
from ztunnel.core.model.address import Address
from ztunnel.core.model.connection import Refusal
from ztunnel.core.model.service import BalanceMode, HealthPolicy, IpFamilies, LoadBalancer, Scope, Service
from ztunnel.core.model.workload import ApplicationTunnel, Health, Locality, NetworkMode, Workload

CLIENT = workload("client", "10.0.0.1", node="n1", locality=Locality("r1", "z1", "s1"))
WEB = service("web", "10.9.0.1")
BACKS = {"demo/web.demo": {80: 8080}}


def chosen(*things: Workload | Service, to: Service = WEB, port: int = 80, roll: float = 0.0) -> Choice | Refusal:
    return choose(mesh(CLIENT, to, *things), to, port, source=CLIENT, roll=roll)


def reached(*things: Workload | Service, to: Service = WEB, port: int = 80) -> set[str]:
    """The names of all endpoints that some roll chooses."""
    choices = [chosen(*things, to=to, port=port, roll=step / 64) for step in range(64)]
    return {choice.workload.name for choice in choices if isinstance(choice, Choice)}


def refused(answer: object) -> str:
    assert isinstance(answer, Refusal)
    assert (answer.flag, answer.status) == ("CONNECT", 503)
    return answer.why


def test_each_endpoint_is_chosen_by_some_roll_and_the_reason_counts_them() -> None:
    pods = [workload(f"web-{n}", f"10.0.1.{n}", backs=BACKS) for n in (1, 2, 3)]
    assert reached(*pods) == {"web-1", "web-2", "web-3"}
    middle = chosen(*pods, roll=0.5)
    assert isinstance(middle, Choice)
    assert (middle.why, middle.port) == ("endpoint web-2 of 3", 8080)


def test_capacity_weighs_the_draw_and_zero_takes_nothing() -> None:
    heavy = workload("heavy", "10.0.1.1", backs=BACKS, capacity=3)
    light = workload("light", "10.0.1.2", backs=BACKS, capacity=1)
    never = workload("never", "10.0.1.3", backs=BACKS, capacity=0)
    names = [chosen(heavy, light, never, roll=step / 64).workload.name for step in range(64)]  # type: ignore[union-attr]
    assert (names.count("heavy"), names.count("light"), names.count("never")) == (48, 16, 0)
    assert refused(chosen(never)) == "no healthy upstream for demo/web: every endpoint has capacity 0"


@pytest.mark.parametrize(
    ("pods", "port", "why"),
    [
        ([], 80, "it has no healthy endpoints"),
        ([workload("sick", "10.0.1.1", backs=BACKS, status=Health.UNHEALTHY)], 80, "it has no healthy endpoints"),
        ([workload("web-1", "10.0.1.1", backs=BACKS)], 81, "the service has no port 81"),
        ([workload("bare", backs=BACKS)], 80, "none of its 1 endpoints has an address and a target for port 80"),
    ],
    ids=["nobody backs it", "only unhealthy", "port not declared", "no address at all"],
)
def test_no_healthy_upstream_says_why(pods: list[Workload], port: int, why: str) -> None:
    assert refused(chosen(*pods, port=port)) == f"no healthy upstream for demo/web: {why}"


def test_unhealthy_endpoints_take_part_when_the_service_allows_all() -> None:
    sick = workload("sick", "10.0.1.1", backs=BACKS, status=Health.UNHEALTHY)
    allow_all = service("web", load_balancer=LoadBalancer(health_policy=HealthPolicy.ALLOW_ALL))
    assert reached(sick, to=allow_all) == {"sick"}


def test_an_endpoint_without_address_counts_only_behind_a_gateway_of_another_network() -> None:
    here = workload("here", backs=BACKS, network_gateway=gateway_at("10.7.0.1"))
    there = workload("there", backs=BACKS, network="net2", network_gateway=gateway_at("10.7.0.1"))
    lost = workload("lost", backs=BACKS, network="net2")
    assert reached(here, there, lost) == {"there"}


@pytest.mark.parametrize(
    ("service_ports", "endpoint_ports", "expected"),
    [
        ({80: 8080}, {80: 8080}, 8080),
        ({80: 8080}, {80: 9090}, 9090),
        ({80: 8080}, {}, 8080),
        ({80: 0}, {80: 1234}, 1234),
        ({80: 0}, {}, None),
        ({80: 0}, {81: 1234}, None),
        ({}, {80: 1234}, None),
    ],
    ids=[
        "both agree",
        "the endpoint's own mapping wins",
        "else the service's",
        "a named port is the endpoint's to map",
        "a named port nobody maps",
        "a named port mapped elsewhere",
        "a port the service does not declare",
    ],
)
def test_target_port(service_ports: dict[int, int], endpoint_ports: dict[int, int], expected: int | None) -> None:
    to = service("web", ports=service_ports)
    answer = chosen(workload("web-1", "10.0.1.1", backs={"demo/web.demo": endpoint_ports}), to=to)
    assert (answer.port if isinstance(answer, Choice) else None) == expected


@pytest.mark.parametrize(
    ("tunnel", "as_waypoint", "expected"),
    [
        (None, True, None),
        (ApplicationTunnel(port=15088), True, 15008),
        (ApplicationTunnel(), True, None),
        (ApplicationTunnel(port=15088), False, None),
    ],
    ids=["no tunnel", "tunnel with a port", "tunnel without a port", "not as a waypoint"],
)
def test_a_waypoint_with_an_application_tunnel_need_not_list_the_port(
    tunnel: ApplicationTunnel | None, as_waypoint: bool, expected: int | None
) -> None:
    waypoint = service("wp", ports={})
    pod = workload("wp-1", "10.0.2.1", backs={"demo/wp.demo": {}}, application_tunnel=tunnel)
    answer = choose(mesh(pod, waypoint), waypoint, 15008, source=CLIENT, roll=0.0, as_waypoint=as_waypoint)
    assert (answer.port if isinstance(answer, Choice) else None) == expected


def at(name: str, ip: str, **fields: object) -> Workload:
    return workload(name, ip, backs=BACKS, **fields)


SAME_NODE = at("same-node", "10.0.1.1", node="n1", locality=Locality("r1", "z1", "s1"))
SAME_ZONE = at("same-zone", "10.0.1.2", node="n2", locality=Locality("r1", "z1", "s2"))
SAME_REGION = at("same-region", "10.0.1.3", node="n3", locality=Locality("r1", "z2", "s1"))
FAR = at("far", "10.0.1.4", node="n1", locality=Locality("r2", "z1", "s1"))
REMOTE_SAME_ZONE = at("remote-zone", "10.0.1.5", network="net2", locality=Locality("r1", "z1", "s9"))
REMOTE_FAR = at("remote-far", "10.0.1.6", network="net2", locality=Locality("r9", "z9", "s9"))
BY_LOCALITY = (Scope.REGION, Scope.ZONE, Scope.SUBZONE)
NETWORK_FIRST = (Scope.NETWORK, Scope.REGION, Scope.ZONE)


@pytest.mark.parametrize(
    ("mode", "preferences", "pods", "expected"),
    [
        (BalanceMode.STANDARD, BY_LOCALITY, [SAME_NODE, FAR], {"same-node", "far"}),
        (BalanceMode.STRICT, BY_LOCALITY, [SAME_NODE, SAME_ZONE, FAR], {"same-node"}),
        (BalanceMode.STRICT, BY_LOCALITY, [SAME_ZONE, SAME_REGION], set()),
        (BalanceMode.STRICT, (Scope.NODE,), [SAME_NODE, SAME_ZONE, FAR], {"same-node", "far"}),
        (BalanceMode.STRICT, NETWORK_FIRST, [SAME_ZONE, REMOTE_SAME_ZONE], {"same-zone"}),
        (BalanceMode.FAILOVER, BY_LOCALITY, [SAME_NODE, SAME_ZONE, SAME_REGION, FAR], {"same-node"}),
        (BalanceMode.FAILOVER, BY_LOCALITY, [SAME_ZONE, SAME_REGION, FAR], {"same-zone"}),
        (BalanceMode.FAILOVER, BY_LOCALITY, [SAME_REGION, FAR], {"same-region"}),
        (BalanceMode.FAILOVER, BY_LOCALITY, [FAR], {"far"}),
        (BalanceMode.FAILOVER, (), [SAME_NODE, FAR], {"same-node", "far"}),
        (BalanceMode.FAILOVER, NETWORK_FIRST, [FAR, REMOTE_SAME_ZONE], {"far"}),
        (BalanceMode.FAILOVER, NETWORK_FIRST, [REMOTE_SAME_ZONE, REMOTE_FAR], {"remote-zone"}),
        (BalanceMode.FAILOVER, (Scope.REGION, Scope.NETWORK), [SAME_REGION, REMOTE_SAME_ZONE], {"same-region"}),
    ],
)
def test_locality(mode: BalanceMode, preferences: tuple[Scope, ...], pods: list[Workload], expected: set[str]) -> None:
    to = service("web", load_balancer=LoadBalancer(preferences, mode))
    assert reached(*pods, to=to) == expected


def test_strict_without_a_near_endpoint_names_what_was_asked_for() -> None:
    to = service("web", load_balancer=LoadBalancer((Scope.REGION, Scope.ZONE), BalanceMode.STRICT))
    assert refused(chosen(FAR, to=to)) == (
        "no healthy upstream for demo/web: no endpoint shares the source's Region, Zone"
    )


def test_a_host_network_endpoint_is_still_an_endpoint() -> None:
    assert reached(at("host", "10.0.3.1", network_mode=NetworkMode.HOST_NETWORK)) == {"host"}


DUAL = workload("dual", "10.0.1.1", "fd00::1", "10.0.1.2")
V6_ONLY = workload("six", "fd00::6")


@pytest.mark.parametrize(
    ("pod", "families", "wanted", "expected"),
    [
        (DUAL, None, "10.0.1.2", "10.0.1.2"),
        (DUAL, None, "10.9.0.1", "10.0.1.1"),
        (DUAL, None, "fd09::1", "fd00::1"),
        (DUAL, IpFamilies.IPV4_ONLY, "fd09::1", "10.0.1.1"),
        (DUAL, IpFamilies.IPV6_ONLY, "10.9.0.1", "fd00::1"),
        (DUAL, IpFamilies.DUAL, "fd09::1", "fd00::1"),
        (V6_ONLY, IpFamilies.AUTOMATIC, "10.9.0.1", "fd00::6"),
        (V6_ONLY, IpFamilies.IPV4_ONLY, "10.9.0.1", None),
    ],
)
def test_address_choice(pod: Workload, families: IpFamilies | None, wanted: str, expected: str | None) -> None:
    to = service("web", ip_families=families) if families else None
    answer = settle(pod, to, 8080, source=CLIENT, wanted_ip=wanted)
    assert (answer.ip if isinstance(answer, Address) else None) == expected


@pytest.mark.parametrize(
    ("pod", "why"),
    [
        (workload("far", "10.0.1.1", network="net2"), "across networks are not supported yet"),
        (workload("dns", hostname="db.example.com"), "has only the host name db.example.com: resolving it is"),
        (workload("bare"), "workload demo/bare has no address that its service allows"),
    ],
)
def test_what_cannot_be_reached_is_refused_with_its_reason(pod: Workload, why: str) -> None:
    assert why in refused(settle(pod, None, 80, source=CLIENT, wanted_ip="10.9.0.1"))


ROLLS = st.floats(0, 1, exclude_max=True)


@given(st.lists(st.integers(0, 2**32 - 1), max_size=8), ROLLS)
def test_a_draw_never_hits_a_weight_of_zero_and_leaves_a_roll(weights: list[int], roll: float) -> None:
    drawn = draw(weights, roll)
    if not any(weights):
        assert drawn is None
    else:
        assert drawn is not None
        index, rest = drawn
        assert weights[index] > 0
        assert 0 <= rest < 1


def test_the_rest_of_a_roll_is_uniform_again() -> None:
    rests = [drawn[1] for step in range(64) if (drawn := draw([1, 3], step / 64)) and drawn[0] == 1]
    assert rests == [step / 48 for step in range(48)]
