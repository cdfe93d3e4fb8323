"""Outbound routes: the whole decision tree, each branch with its reason."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mesh_samples import gateway_at, gateway_named, mesh, service, workload

from ztunnel.core.decide.outbound import route
from ztunnel.core.decide.view import View
from ztunnel.core.model.address import Address
from ztunnel.core.model.connection import Refusal, Route, RouteKind
from ztunnel.core.model.identity import Identity
from ztunnel.core.model.service import BalanceMode, LoadBalancer, Visibility, WeightedWaypoint
from ztunnel.core.model.workload import Health, NetworkMode, Protocol, Workload

ILLEGAL = frozenset({15001, 15006, 15008})
CLIENT = workload("client", "10.0.0.1")
WEB_1 = workload("web-1", "10.0.1.1", backs={"demo/web.demo": {80: 8080}})
WEB = service("web", "10.9.0.1", subject_alt_names=("spiffe://cluster.local/ns/demo/sa/web",))
PLAIN_POD = workload("plain", "10.0.1.2", backs={"demo/old.demo": {80: 8080}}, protocol=Protocol.TCP)
OLD = service("old", "10.9.0.2")
WP_SERVICE = service("wp", "10.9.0.15", ports={15008: 15008}, subject_alt_names=("spiffe://td/ns/demo/sa/extra",))
WP_1 = workload("wp-1", "10.0.2.1", backs={"demo/wp.demo": {15008: 15008}})
WP_IDENTITIES = (Identity("td", "demo", "extra"), WP_1.identity)


def go(view: View, ip: str, port: int = 80, *, source: Workload = CLIENT, roll: float = 0.0) -> Route | Refusal:
    return route(view, source=source, target=Address(ip, port), network="", roll=roll, illegal_ports=ILLEGAL)


def routed(view: View, ip: str, port: int = 80, *, source: Workload = CLIENT, roll: float = 0.0) -> Route:
    answer = go(view, ip, port, source=source, roll=roll)
    assert isinstance(answer, Route), answer
    return answer


def refused(view: View, ip: str, port: int = 80, *, source: Workload = CLIENT) -> str:
    answer = go(view, ip, port, source=source)
    assert isinstance(answer, Refusal), answer
    return answer.why


def test_a_service_goes_to_an_endpoint_in_a_tunnel() -> None:
    assert routed(mesh(CLIENT, WEB_1, WEB), "10.9.0.1") == Route(
        kind=RouteKind.HBONE,
        next_hop=Address("10.0.1.1", 15008),
        authority="10.0.1.1:8080",
        target=Address("10.0.1.1", 8080),
        identities=(Identity("cluster.local", "demo", "web"), WEB_1.identity),
        workload=WEB_1,
        service=WEB,
        why="service demo/web: endpoint web-1 of 1, HBONE",
    )


def test_a_workload_goes_to_itself_with_its_own_identity_only() -> None:
    assert routed(mesh(CLIENT, WEB_1, WEB), "10.0.1.1", 9090) == Route(
        kind=RouteKind.HBONE,
        next_hop=Address("10.0.1.1", 15008),
        authority="10.0.1.1:9090",
        target=Address("10.0.1.1", 9090),
        identities=(WEB_1.identity,),
        workload=WEB_1,
        why="workload demo/web-1, HBONE",
    )


def test_an_ipv6_authority_is_bracketed() -> None:
    assert routed(mesh(CLIENT, workload("six", "fd00::6")), "fd00::6").authority == "[fd00::6]:80"


def test_a_workload_that_speaks_no_hbone_gets_plain_tcp() -> None:
    by_service = routed(mesh(CLIENT, PLAIN_POD, OLD), "10.9.0.2")
    assert (by_service.kind, by_service.next_hop) == (RouteKind.TCP, Address("10.0.1.2", 8080))
    assert (by_service.authority, by_service.identities) == ("", ())
    assert by_service.why == "service demo/old: endpoint plain of 1, plain TCP"
    assert routed(mesh(CLIENT, PLAIN_POD), "10.0.1.2", 81).next_hop == Address("10.0.1.2", 81)


HOST_POD = workload("host", "10.0.4.4", network_mode=NetworkMode.HOST_NETWORK)
OTHER_NETWORK = workload("there", "10.0.5.5", network="net2")
HIDDEN = service("web", "10.9.0.7", namespace="other", visibility=Visibility.NAMESPACE)


@pytest.mark.parametrize(
    ("view", "ip"),
    [
        (mesh(CLIENT), "1.2.3.4"),
        (mesh(CLIENT, HOST_POD), "10.0.4.4"),
        (mesh(CLIENT, OTHER_NETWORK), "10.0.5.5"),
        (mesh(CLIENT, HIDDEN), "10.9.0.7"),
    ],
    ids=["nobody's address", "a node's address", "an address of another network", "a service hidden from us"],
)
def test_unknown_destinations_pass_straight_through(view: View, ip: str) -> None:
    target = Address(ip, 80)
    assert routed(view, ip) == Route(
        kind=RouteKind.PASSTHROUGH, next_hop=target, target=target, why="unknown destination, passed through"
    )


def test_a_passthrough_service_keeps_the_address_and_is_still_named() -> None:
    view = mesh(CLIENT, service("ext", "10.9.0.9", load_balancer=LoadBalancer(mode=BalanceMode.PASSTHROUGH)))
    answer = routed(view, "10.9.0.9", 443)
    assert (answer.kind, answer.next_hop) == (RouteKind.PASSTHROUGH, Address("10.9.0.9", 443))
    assert answer.service is not None
    assert answer.why == "service demo/ext asks for passthrough"


def test_a_service_without_endpoints_is_refused_not_passed_through() -> None:
    assert refused(mesh(CLIENT, WEB), "10.9.0.1") == "no healthy upstream for demo/web: it has no healthy endpoints"


def test_the_service_wins_when_its_address_is_a_workloads_too() -> None:
    both = workload("both", "10.9.0.1")
    assert routed(mesh(CLIENT, WEB_1, WEB, both), "10.9.0.1").workload == WEB_1


def test_such_an_address_names_the_workload_so_the_services_waypoint_is_not_asked() -> None:
    guarded = service("web", "10.9.0.1", waypoint=gateway_named("wp.demo"))
    view = mesh(CLIENT, WEB_1, guarded, WP_SERVICE, WP_1, workload("both", "10.9.0.1"))
    assert routed(view, "10.9.0.1").workload == WEB_1


@pytest.mark.parametrize("ip", ["127.0.0.1", "127.0.0.9", "::1", "10.0.0.1"])
@pytest.mark.parametrize("port", sorted(ILLEGAL))
def test_a_connection_to_our_own_listeners_is_a_loop(ip: str, port: int) -> None:
    target = Address(ip, port)
    assert refused(mesh(CLIENT), ip, port) == f"loop: {target} is this proxy's own listener"


def test_a_service_that_maps_to_our_own_listener_is_a_loop_too() -> None:
    trap = service("trap", "10.9.0.8", ports={80: 15001})
    own = workload("client", "10.0.0.1", backs={"demo/trap.demo": {80: 15001}})
    assert refused(mesh(own, trap), "10.9.0.8", source=own).startswith("loop: 10.0.0.1:15001")


def test_the_same_ports_elsewhere_are_no_loop() -> None:
    assert routed(mesh(CLIENT), "1.2.3.4", 15001).kind is RouteKind.PASSTHROUGH


BEHIND = service("behind", "10.9.0.3", waypoint=gateway_named("wp.demo"))


@pytest.mark.parametrize(
    "waypoint",
    [gateway_named("wp.demo"), gateway_at("10.9.0.15")],
    ids=["waypoint by host name", "waypoint by address"],
)
def test_a_services_waypoint_gets_its_traffic_with_the_original_destination(waypoint: object) -> None:
    behind = service("behind", "10.9.0.3", waypoint=waypoint)
    assert routed(mesh(CLIENT, behind, WP_SERVICE, WP_1), "10.9.0.3") == Route(
        kind=RouteKind.HBONE,
        next_hop=Address("10.0.2.1", 15008),
        authority="10.9.0.3:80",
        target=Address("10.9.0.3", 80),
        identities=WP_IDENTITIES,
        workload=WP_1,
        service=behind,
        why="service demo/behind through waypoint demo/wp-1, HBONE",
    )


def test_a_waypoint_takes_a_passthrough_services_traffic_too() -> None:
    ext = service(
        "ext", "10.9.0.9", waypoint=gateway_named("wp.demo"), load_balancer=LoadBalancer((), BalanceMode.PASSTHROUGH)
    )
    assert routed(mesh(CLIENT, ext, WP_SERVICE, WP_1), "10.9.0.9", 443).next_hop == Address("10.0.2.1", 15008)


def test_a_missing_waypoint_is_refused_never_bypassed() -> None:
    backend = workload("b-1", "10.0.1.9", backs={"demo/behind.demo": {80: 80}})
    assert refused(mesh(CLIENT, BEHIND, backend), "10.9.0.3") == "waypoint demo/wp.demo is not known"


def test_a_waypoint_that_calls_the_address_it_serves_reaches_the_service_not_itself() -> None:
    backend = workload("b-1", "10.0.1.9", backs={"demo/behind.demo": {80: 80}})
    view = mesh(BEHIND, WP_SERVICE, WP_1, backend)
    assert routed(view, "10.9.0.3", source=WP_1).workload == backend


def test_a_sick_waypoint_instance_is_recognised_as_well() -> None:
    backend = workload("b-1", "10.0.1.9", backs={"demo/behind.demo": {80: 80}})
    sick = workload("wp-2", "10.0.2.2", backs={"demo/wp.demo": {15008: 15008}}, status=Health.UNHEALTHY)
    view = mesh(BEHIND, WP_SERVICE, WP_1, sick, backend)
    assert routed(view, "10.9.0.3", source=sick).workload == backend


CANARY = workload("canary", "10.0.2.9", hostname="canary.example.com")


def test_weighted_waypoints_share_the_connections() -> None:
    split = service(
        "split",
        "10.9.0.4",
        waypoint=gateway_at("10.8.8.8"),
        weighted_waypoints=(
            WeightedWaypoint(gateway_named("wp.demo"), 3),
            WeightedWaypoint(gateway_named("canary.example.com"), 1),
        ),
    )
    view = mesh(CLIENT, split, WP_SERVICE, WP_1, CANARY)
    hops = [routed(view, "10.9.0.4", roll=step / 64).workload for step in range(64)]
    assert (hops.count(WP_1), hops.count(CANARY)) == (48, 16)


def test_weights_that_add_up_to_nothing_leave_the_single_waypoint() -> None:
    split = service(
        "split",
        "10.9.0.4",
        waypoint=gateway_named("wp.demo"),
        weighted_waypoints=(WeightedWaypoint(gateway_named("canary.example.com"), 0),),
    )
    assert routed(mesh(CLIENT, split, WP_SERVICE, WP_1, CANARY), "10.9.0.4").workload == WP_1


def test_a_route_is_certain_when_chance_had_no_part_in_it() -> None:
    web_2 = workload("web-2", "10.0.1.9", backs={"demo/web.demo": {80: 8080}})
    behind = service("behind", "10.9.0.16", waypoint=gateway_named("wp.demo"))
    wp_2 = workload("wp-2", "10.0.2.2", backs={"demo/wp.demo": {15008: 15008}})
    assert routed(mesh(CLIENT), "8.8.8.8").certain
    assert routed(mesh(CLIENT, WEB_1, WEB), "10.0.1.1").certain
    assert routed(mesh(CLIENT, WEB_1, WEB), "10.9.0.1").certain
    assert not routed(mesh(CLIENT, WEB_1, web_2, WEB), "10.9.0.1").certain
    assert routed(mesh(CLIENT, behind, WP_SERVICE, WP_1), "10.9.0.16").certain
    assert not routed(mesh(CLIENT, behind, WP_SERVICE, WP_1, wp_2), "10.9.0.16").certain
    weighted = WeightedWaypoint(gateway_named("wp.demo"), 1)
    two = service("two", "10.9.0.17", weighted_waypoints=(weighted, weighted))
    assert not routed(mesh(CLIENT, two, WP_SERVICE, WP_1), "10.9.0.17").certain


def test_no_instance_of_any_weighted_waypoint_is_sent_to_another() -> None:
    split = service(
        "split",
        "10.9.0.4",
        weighted_waypoints=(
            WeightedWaypoint(gateway_named("wp.demo"), 1),
            WeightedWaypoint(gateway_named("canary.example.com"), 1),
        ),
    )
    backend = workload("b-1", "10.0.1.9", backs={"demo/split.demo": {80: 80}})
    view = mesh(split, WP_SERVICE, WP_1, CANARY, backend)
    for source in (WP_1, CANARY):
        for roll in (0.0, 0.9):
            assert routed(view, "10.9.0.4", source=source, roll=roll).workload == backend


GUARDED = workload("guarded", "10.0.1.7", waypoint=gateway_at("10.9.0.15"), backs={"demo/web.demo": {80: 8080}})


def test_a_workloads_waypoint_takes_traffic_that_names_the_workload() -> None:
    answer = routed(mesh(CLIENT, GUARDED, WP_SERVICE, WP_1), "10.0.1.7", 8080)
    assert (answer.next_hop, answer.authority) == (Address("10.0.2.1", 15008), "10.0.1.7:8080")
    assert answer.identities == WP_IDENTITIES
    assert answer.service is None
    assert answer.why == "workload demo/guarded through waypoint demo/wp-1, HBONE"


def test_a_workloads_waypoint_is_not_asked_when_a_service_was_named() -> None:
    assert routed(mesh(CLIENT, GUARDED, WEB, WP_SERVICE, WP_1), "10.9.0.1").authority == "10.0.1.7:8080"


def test_the_waypoint_itself_goes_direct_to_its_workload() -> None:
    answer = routed(mesh(GUARDED, WP_SERVICE, WP_1), "10.0.1.7", 8080, source=WP_1)
    assert (answer.workload, answer.next_hop) == (GUARDED, Address("10.0.1.7", 15008))


def test_the_sources_own_waypoint_does_not_matter() -> None:
    source = workload("client", "10.0.0.1", waypoint=gateway_at("10.9.0.15"))
    assert routed(mesh(source, WEB_1, WEB, WP_SERVICE, WP_1), "10.9.0.1", source=source).workload == WEB_1


@pytest.mark.parametrize(
    ("view", "ip"),
    [
        (
            mesh(CLIENT, WEB, workload("web-9", "10.0.1.1", network="net2", backs={"demo/web.demo": {80: 80}})),
            "10.9.0.1",
        ),
        (
            mesh(
                CLIENT,
                BEHIND,
                WP_SERVICE,
                workload("wp-9", network="net2", workload_ips=("10.0.2.1",), backs={"demo/wp.demo": {}}),
            ),
            "10.9.0.3",
        ),
    ],
    ids=["an endpoint", "a waypoint"],
)
def test_a_next_hop_on_another_network_is_refused(view: View, ip: str) -> None:
    assert "is on network 'net2', the source on ''" in refused(view, ip)


def test_an_endpoint_known_only_by_host_name_is_refused() -> None:
    view = mesh(CLIENT, WEB, workload("db", hostname="db.example.com", backs={"demo/web.demo": {80: 5432}}))
    assert "has only the host name db.example.com" in refused(view, "10.9.0.1")


def test_the_port_of_the_tunnel_is_the_callers_choice() -> None:
    answer = route(
        mesh(CLIENT, WEB_1),
        source=CLIENT,
        target=Address("10.0.1.1", 80),
        network="",
        roll=0.0,
        illegal_ports=ILLEGAL,
        hbone_port=25008,
    )
    assert isinstance(answer, Route)
    assert answer.next_hop == Address("10.0.1.1", 25008)


@given(
    st.sampled_from([CLIENT, WEB_1, WP_1, GUARDED]),
    st.sampled_from(["10.9.0.1", "10.9.0.3", "10.9.0.15", "10.0.1.1", "10.0.1.7", "10.0.2.1", "1.2.3.4", "127.0.0.1"]),
    st.sampled_from([80, 8080, 15001, 15008]),
    st.floats(0, 1, exclude_max=True),
)
def test_every_answer_has_a_reason_and_only_tunnels_have_identities(
    source: Workload, ip: str, port: int, roll: float
) -> None:
    view = mesh(CLIENT, WEB, WEB_1, BEHIND, WP_SERVICE, WP_1, GUARDED)
    answer = go(view, ip, port, source=source, roll=roll)
    assert answer.why
    if isinstance(answer, Route):
        in_tunnel = answer.kind is RouteKind.HBONE
        assert bool(answer.identities) == bool(answer.authority) == in_tunnel
