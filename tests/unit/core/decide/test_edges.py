"""Edges: which names and identities telemetry sees."""

from __future__ import annotations

import pytest
from mesh_samples import service, workload

from ztunnel.core.decide.edges import edge
from ztunnel.core.model.connection import Direction
from ztunnel.core.model.flow import Party
from ztunnel.core.model.identity import Identity
from ztunnel.core.model.workload import Locality

CLIENT = workload("client-abc", "10.0.0.1", service_account="client")
SERVER = workload(
    "web-xyz",
    "10.0.1.1",
    service_account="web",
    workload_name="web",
    canonical_name="web-app",
    canonical_revision="v2",
    cluster_id="c1",
    locality=Locality("r1", "z1", "s1"),
)
WEB = service("web", "10.9.0.1")
PEER = Identity("cluster.local", "demo", "client")


def test_a_party_carries_the_workloads_names() -> None:
    assert edge(Direction.INBOUND, source=None, destination=SERVER).destination == Party(
        name="web-xyz",
        workload="web",
        namespace="demo",
        identity="spiffe://cluster.local/ns/demo/sa/web",
        canonical_name="web-app",
        canonical_revision="v2",
        cluster="c1",
        region="r1",
        zone="z1",
    )


def test_the_service_is_the_one_addressed() -> None:
    made = edge(Direction.OUTBOUND, source=CLIENT, destination=SERVER, service=WEB, mutual_tls=True)
    assert (made.service_hostname, made.service_name, made.service_namespace) == ("web.demo", "web", "demo")
    without = edge(Direction.OUTBOUND, source=CLIENT, destination=None)
    assert (without.service_hostname, without.destination) == ("", Party())


@pytest.mark.parametrize(
    ("direction", "mutual_tls", "peer", "expected"),
    [
        (Direction.OUTBOUND, True, None, "spiffe://cluster.local/ns/demo/sa/client"),
        (Direction.OUTBOUND, False, None, ""),
        (Direction.INBOUND, True, Identity("td", "x", "y"), "spiffe://td/ns/x/sa/y"),
        (Direction.INBOUND, False, None, ""),
        (Direction.INBOUND, True, None, ""),
    ],
    ids=[
        "outbound tunnel: our own",
        "outbound plain: none",
        "inbound tunnel: the certificate's",
        "inbound plain: none",
        "never the one guessed from the address",
    ],
)
def test_the_source_identity_is_only_what_mutual_tls_proved(
    direction: Direction, mutual_tls: bool, peer: Identity | None, expected: str
) -> None:
    made = edge(direction, source=CLIENT, destination=SERVER, mutual_tls=mutual_tls, peer=peer)
    assert made.source.identity == expected
    assert made.destination.identity == "spiffe://cluster.local/ns/demo/sa/web"
    assert made.mutual_tls is mutual_tls


def test_an_unknown_peer_with_a_certificate_is_at_least_known_by_it() -> None:
    made = edge(Direction.INBOUND, source=None, destination=SERVER, mutual_tls=True, peer=PEER)
    assert made.source == Party(namespace="demo", identity=str(PEER))


def test_equal_parties_make_equal_edges() -> None:
    first, second = (edge(Direction.OUTBOUND, source=CLIENT, destination=SERVER, service=WEB) for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)
