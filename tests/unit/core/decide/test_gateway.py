"""Waypoints: how they are named, found and recognised."""

from __future__ import annotations

import pytest
from mesh_samples import gateway_at, gateway_named, mesh, service, workload

from ztunnel.core.decide.gateway import Gateway, expected_identities, has_instance, resolve
from ztunnel.core.model.address import Address
from ztunnel.core.model.connection import Refusal
from ztunnel.core.model.identity import Identity
from ztunnel.core.model.workload import GatewayAddress

CLIENT = workload("client", "10.0.0.1")
WP_SERVICE = service("wp", "10.9.0.15", ports={15008: 15008}, subject_alt_names=("spiffe://td/ns/demo/sa/extra",))
WP_POD = workload("wp-1", "10.0.2.1", "fd00::21", backs={"demo/wp.demo": {15008: 15009}})
LONE = workload("lone", "10.0.3.1", hostname="lone.example.com")
MESH = mesh(CLIENT, WP_SERVICE, WP_POD, LONE)
EXTRA = Identity("td", "demo", "extra")


@pytest.mark.parametrize(
    ("gateway", "address", "identities"),
    [
        (gateway_at("10.9.0.15"), Address("10.0.2.1", 15009), (EXTRA, WP_POD.identity)),
        (gateway_named("wp.demo"), Address("10.0.2.1", 15009), (EXTRA, WP_POD.identity)),
        (gateway_at("10.0.3.1"), Address("10.0.3.1", 15008), (LONE.identity,)),
        (gateway_named("lone.example.com"), Address("10.0.3.1", 15008), (LONE.identity,)),
    ],
    ids=["service by address", "service by host name", "workload by address", "workload by host name"],
)
def test_the_four_ways_to_name_a_waypoint(
    gateway: GatewayAddress, address: Address, identities: tuple[Identity, ...]
) -> None:
    found = resolve(MESH, gateway, source=CLIENT, caller_ip="10.9.0.1", roll=0.0)
    assert isinstance(found, Gateway)
    assert (found.address, found.identities) == (address, identities)


def test_a_gateway_by_host_name_follows_the_callers_family_and_one_by_address_its_own() -> None:
    by_name = resolve(MESH, gateway_named("wp.demo"), source=CLIENT, caller_ip="fd09::1", roll=0.0)
    by_address = resolve(MESH, gateway_at("10.9.0.15"), source=CLIENT, caller_ip="fd09::1", roll=0.0)
    assert isinstance(by_name, Gateway)
    assert isinstance(by_address, Gateway)
    assert (by_name.address.ip, by_address.address.ip) == ("fd00::21", "10.0.2.1")


@pytest.mark.parametrize(
    ("gateway", "why"),
    [
        (gateway_at("10.8.8.8"), "waypoint /10.8.8.8 is not known"),
        (gateway_named("gone.demo"), "waypoint demo/gone.demo is not known"),
        (gateway_named("wp.demo", "other"), "waypoint other/wp.demo is not known"),
        (gateway_named("idle.demo"), "waypoint demo/idle.demo: no healthy upstream for demo/idle: "),
    ],
)
def test_what_cannot_be_found_is_refused(gateway: GatewayAddress, why: str) -> None:
    view = mesh(CLIENT, WP_SERVICE, WP_POD, service("idle", ports={15008: 15008}))
    refusal = resolve(view, gateway, source=CLIENT, caller_ip="10.9.0.1", roll=0.0)
    assert isinstance(refusal, Refusal)
    assert refusal.why.startswith(why)


@pytest.mark.parametrize(
    "gateway", [gateway_at("10.9.0.15"), gateway_named("wp.demo")], ids=["by address", "by host name"]
)
def test_instances_of_a_waypoint_service_are_its_endpoints(gateway: GatewayAddress) -> None:
    assert has_instance(MESH, gateway, WP_POD)
    assert not has_instance(MESH, gateway, CLIENT)


@pytest.mark.parametrize(
    "gateway", [gateway_at("10.0.3.1"), gateway_named("lone.example.com")], ids=["by address", "by host name"]
)
def test_the_instance_of_a_waypoint_workload_is_that_workload(gateway: GatewayAddress) -> None:
    assert has_instance(MESH, gateway, LONE)
    assert not has_instance(MESH, gateway, WP_POD)


def test_nobody_is_an_instance_of_an_unknown_waypoint() -> None:
    assert not has_instance(MESH, gateway_at("10.8.8.8"), CLIENT)


def test_sans_that_are_no_spiffe_identity_are_skipped_and_none_is_listed_twice() -> None:
    own = str(WP_POD.identity)
    named = service("wp", subject_alt_names=("dns.example.com", own, "spiffe://td/ns/demo/sa/extra"))
    assert expected_identities(named, WP_POD) == (WP_POD.identity, EXTRA)
