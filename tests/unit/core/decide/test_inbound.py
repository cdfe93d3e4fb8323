"""Inbound deliveries: which CONNECT is ours, where it goes inside the pod, and whom it is counted for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mesh_samples import gateway_at, gateway_named, mesh, service, workload

from ztunnel.core.decide.inbound import attribute, deliver, deliver_plain
from ztunnel.core.decide.view import View
from ztunnel.core.model.address import Address, HostPort, parse_authority
from ztunnel.core.model.connection import Delivery, Refusal
from ztunnel.core.model.service import Service, WeightedWaypoint
from ztunnel.core.model.workload import ApplicationTunnel, TunnelProtocol, Workload

ILLEGAL = frozenset({15001, 15006, 15008})
WEB = service("web", "10.9.0.1", ports={80: 8080, 81: 0})
OWN = workload("web-1", "10.0.1.1", "fd00::11", backs={"demo/web.demo": {80: 8080, 81: 9191}})
LOCAL = Address("10.0.1.1", 15008)
MESH = mesh(OWN, WEB)


def ask(authority: str, *, own: Workload = OWN, view: View = MESH, host: str = "") -> Delivery | Refusal:
    return deliver(
        view,
        own=own,
        local=Address(own.workload_ips[0], 15008),
        target=parse_authority(authority),
        network="",
        illegal_ports=ILLEGAL,
        forwarded_host=host,
    )


def delivered(authority: str, *, own: Workload = OWN, view: View = MESH) -> Delivery:
    answer = ask(authority, own=own, view=view)
    assert isinstance(answer, Delivery), answer
    return answer


def refused(authority: str, *, own: Workload = OWN, view: View = MESH) -> tuple[int, str]:
    answer = ask(authority, own=own, view=view)
    assert isinstance(answer, Refusal), answer
    return answer.status, answer.why


@pytest.mark.parametrize(
    ("authority", "target"),
    [
        ("10.0.1.1:8080", Address("10.0.1.1", 8080)),
        ("10.0.1.1:1", Address("10.0.1.1", 1)),
        ("[::ffff:10.0.1.1]:8080", Address("10.0.1.1", 8080)),
        ("[fd00:0::11]:8080", Address("fd00::11", 8080)),
        ("web.demo:80", Address("10.0.1.1", 8080)),
        ("WEB.demo:80", Address("10.0.1.1", 8080)),
        ("web.demo:81", Address("10.0.1.1", 9191)),
    ],
)
def test_what_is_ours_is_delivered(authority: str, target: Address) -> None:
    assert delivered(authority).target == target


def test_the_reason_names_the_authority_and_the_target() -> None:
    assert delivered("web.demo:80").why == "CONNECT web.demo:80 to 10.0.1.1:8080"
    assert delivered("10.0.1.1:8080").why == "CONNECT 10.0.1.1:8080 to 10.0.1.1:8080"


@pytest.mark.parametrize("authority", ["10.0.1.2:8080", "127.0.0.1:8080", "10.9.0.1:80", "[::1]:8080"])
def test_somebody_elses_address_is_a_mismatch(authority: str) -> None:
    host = authority.rpartition(":")[0].strip("[]")
    assert refused(authority) == (400, f"ip mismatch: 10.0.1.1 != {host}")


@pytest.mark.parametrize(
    ("authority", "why"),
    [
        ("gone.demo:80", "unknown hostname gone.demo"),
        ("web.demo:82", "service demo/web has no target for port 82"),
        ("10.0.1.1:15008", "loop: 10.0.1.1:15008 is this proxy's own listener"),
        ("10.0.1.1:15001", "loop: 10.0.1.1:15001 is this proxy's own listener"),
    ],
)
def test_what_cannot_be_fulfilled_is_unavailable(authority: str, why: str) -> None:
    assert refused(authority) == (503, why)


def test_a_named_port_without_our_own_mapping_is_unavailable() -> None:
    stranger = workload("stranger", "10.0.1.3")
    assert refused("web.demo:81", own=stranger, view=mesh(stranger, WEB))[0] == 503


WP_SERVICE = service("wp", "10.9.0.15", ports={15008: 15008})
WP_POD = workload("wp-1", "10.0.2.1", backs={"demo/wp.demo": {15008: 15008}}, hostname="wp-1.example.com")


@pytest.mark.parametrize(
    "behind",
    [
        service("behind", "10.9.0.3", waypoint=gateway_named("wp.demo")),
        service("behind", "10.9.0.3", waypoint=gateway_at("10.9.0.15")),
        service("behind", "10.9.0.3", waypoint=gateway_at("10.0.2.1")),
        service("behind", "10.9.0.3", waypoint=gateway_named("wp-1.example.com")),
        service("behind", "10.9.0.3", weighted_waypoints=(WeightedWaypoint(gateway_named("wp.demo"), 1),)),
        workload("behind", "10.9.0.3", waypoint=gateway_at("10.9.0.15")),
        workload("behind", "10.9.0.3", waypoint=gateway_at("10.0.2.1")),
    ],
    ids=[
        "service, waypoint service by name",
        "service, waypoint service by address",
        "service, waypoint workload by address",
        "service, waypoint workload by name",
        "service, weighted waypoint",
        "workload, waypoint service",
        "workload, waypoint workload",
    ],
)
def test_a_waypoint_takes_what_it_stands_in_front_of_and_nobody_else_does(behind: Service | Workload) -> None:
    view = mesh(WP_SERVICE, WP_POD, OWN, behind)
    assert delivered("10.9.0.3:80", own=WP_POD, view=view).target == Address("10.0.2.1", 80)
    assert refused("10.9.0.3:80", own=OWN, view=view) == (400, "ip mismatch: 10.0.1.1 != 10.9.0.3")


def test_an_application_tunnel_takes_any_address_at_its_own_port() -> None:
    own = workload("wp-1", "10.0.2.1", application_tunnel=ApplicationTunnel(port=15088))
    answer = delivered("10.9.9.9:80", own=own, view=mesh(own))
    assert answer.target == Address("10.0.2.1", 15088)
    assert answer.why == "CONNECT 10.9.9.9:80, application tunnel to 10.0.2.1:15088"


def test_an_application_tunnel_without_a_port_keeps_the_port() -> None:
    own = workload("wp-1", "10.0.2.1", application_tunnel=ApplicationTunnel())
    assert delivered("10.9.9.9:80", own=own, view=mesh(own)).target == Address("10.0.2.1", 80)


def test_an_application_that_expects_a_proxy_header_is_not_given_bare_bytes() -> None:
    own = workload("wp-1", "10.0.2.1", application_tunnel=ApplicationTunnel(TunnelProtocol.PROXY, 15088))
    status, why = refused("10.0.2.1:80", own=own, view=mesh(own))
    assert (status, why) == (503, "demo/wp-1 expects the PROXY protocol, which is not supported yet")


def test_plaintext_goes_where_it_was_going() -> None:
    answer = deliver_plain(MESH, own=OWN, destination=Address("10.0.1.1", 8080), illegal_ports=ILLEGAL)
    assert isinstance(answer, Delivery)
    assert (answer.target, answer.workload, answer.service) == (Address("10.0.1.1", 8080), OWN, WEB)


@pytest.mark.parametrize("ip", ["10.0.1.1", "10.3.3.3"])
@pytest.mark.parametrize("port", sorted(ILLEGAL))
def test_plaintext_to_our_listeners_is_refused_at_any_address(ip: str, port: int) -> None:
    answer = deliver_plain(MESH, own=OWN, destination=Address(ip, port), illegal_ports=ILLEGAL)
    assert isinstance(answer, Refusal)
    assert answer.why == f"loop: {Address(ip, port)} is this proxy's own listener"


API = service("api", "10.9.0.2", ports={443: 8080, 444: 8443})
BOTH = workload("both", "10.0.1.4", backs={"demo/web.demo": {80: 8080}, "demo/api.demo": {443: 8080}})


@pytest.mark.parametrize(
    ("port", "host", "expected"),
    [
        (8080, "web.demo", WEB),
        (8080, "api.demo", API),
        (8080, "", API),
        (8080, "stranger.demo", API),
        (8443, "", API),
        (8443, "web.demo", WEB),
        (9999, "", None),
    ],
    ids=[
        "the client says web",
        "the client says api",
        "nobody says: the first by name",
        "the client names a service we do not back",
        "a port that only the service maps",
        "what the client says counts more than the port",
        "no service has this target",
    ],
)
def test_inbound_telemetry_is_attributed_to_a_service(port: int, host: str, expected: Service | None) -> None:
    stranger = service("stranger", "10.9.0.5")
    assert attribute(mesh(BOTH, WEB, API, stranger), own=BOTH, port=port, forwarded_host=host) == expected


def test_a_delivery_is_attributed_by_the_addressed_host_name_or_the_forwarded_one() -> None:
    view = mesh(BOTH, WEB, API)
    by_name = ask("web.demo:80", own=BOTH, view=view)
    assert isinstance(by_name, Delivery)
    assert by_name.service == WEB
    forwarded = ask("10.0.1.4:8080", own=BOTH, view=view, host="web.demo")
    assert isinstance(forwarded, Delivery)
    assert forwarded.service == WEB


TARGETS = st.builds(Address, st.ip_addresses().map(str) | st.sampled_from(OWN.workload_ips), st.integers(1, 65535))
NAMES = st.builds(HostPort, st.sampled_from(["web.demo", "gone.demo"]), st.integers(1, 65535) | st.just(80))


@given(TARGETS | NAMES)
def test_any_target_gives_an_answer_inside_this_pod_or_a_refusal(target: Address | HostPort) -> None:
    answer = ask(str(target))
    if isinstance(answer, Delivery):
        assert answer.target.ip in OWN.workload_ips
        assert answer.target.port not in ILLEGAL
    else:
        assert answer.status in (400, 503)
