"""The pool of tunnels: one dial for many, the peer's limits, what follows a full or draining tunnel, certificates."""

from __future__ import annotations

import socket
from functools import partial

import msgspec
import pytest
import trio
from cryptography import x509
from mesh_samples import service, workload
from netns_builder import Acceptor, Topology
from path_mesh import (
    CLIENT,
    CLIENT_ID,
    SERVER,
    SERVER_ID,
    SERVER_IP,
    SETTINGS,
    STRANGER_IP,
    VIP,
    WEB,
    Path,
    is_reset,
    path,
    read_exactly,
    reset,
    run,
    status,
    until,
)
from raw_peers import HboneClient, HboneServer, hbone_server

from ztunnel.core.model.identity import Identity
from ztunnel.core.wire import frames
from ztunnel.link.messages import CertificateForgotten, CertificateWanted
from ztunnel.worker.engine.ending import Ending
from ztunnel.worker.engine.h2 import Settings as TunnelSettings


def open_streams(peer: HboneServer) -> list[int]:
    """Streams of each tunnel that is still there."""
    return [len(tunnel.streams) for tunnel in peer.tunnels if not tunnel.closed]


async def works(client: socket.socket, app: socket.socket) -> None:
    await run(client.sendall, b"hello")
    assert await run(read_exactly, app, 5) == b"hello"


async def test_one_dial_serves_fifty_waiting_connections(topology: Topology) -> None:
    async with path(topology, far=None) as p:
        credentials: list[Identity] = []
        hold = p.near.issue
        p.near.issue = credentials.append  # type: ignore[assignment]
        p.near.play(CertificateForgotten(CLIENT.identity))
        clients = [await p.connect() for _ in range(50)]
        await until(lambda: credentials)
        assert (await status(p.near))["connections"] == 50
        assert len(credentials) == 1, "one certificate asked for, too"
        async with hbone_server(p.server, p.pki.leaf(SERVER_ID)) as peer:
            answer = hold(CLIENT.identity)
            assert answer is not None
            p.near.play(answer)
            await until(lambda: len(peer.applications) == 50)
            assert len(peer.accepted) == 1
            assert len(clients) == 50


async def test_a_peer_that_allows_three_streams_never_gets_a_fourth(topology: Topology) -> None:
    three = TunnelSettings(max_streams=3)
    async with (
        path(topology, far=None) as p,
        hbone_server(p.server, p.pki.leaf(SERVER_ID), settings=three) as peer,
    ):
        clients = [await p.connect() for _ in range(8)]
        await until(lambda: len(peer.applications) == 8)
        assert sorted(open_streams(peer)) == [2, 3, 3]
        for client in clients:
            await run(client.sendall, b"x")
        for app in peer.applications:
            assert await run(app.recv, 1) == b"x"


async def test_one_connection_goes_ahead_of_the_peers_settings(topology: Topology) -> None:
    """With the end of the handshake, without a round trip more; the others wait for what the peer allows."""
    async with path(topology, far=None) as p, hbone_server(p.server, p.pki.leaf(SERVER_ID), silent="tls") as peer:
        for _ in range(3):
            await p.connect()
        await until(lambda: peer.requests)
        assert (await status(p.near))["connections"] == 3
        assert len(peer.accepted) == len(peer.requests) == 1


async def test_workers_keep_to_their_own_limit(topology: Topology) -> None:
    few = msgspec.structs.replace(SETTINGS, pool_max_streams_per_connection=2)
    async with path(topology, near=few) as p:
        app = p.application()
        pairs = [await p.pair(app) for _ in range(5)]
        assert (await status(p.near))["tunnels"] == 3
        for client, served in pairs:
            await works(client, served)


async def test_slots_are_used_again(topology: Topology) -> None:
    """Many connections one after the other, three at a time: still the first tunnel (ztunnel.md 5, a gap there)."""
    three = TunnelSettings(max_streams=3)
    async with (
        path(topology, far=None) as p,
        hbone_server(p.server, p.pki.leaf(SERVER_ID), settings=three) as peer,
    ):
        for number in range(30):
            client = await p.connect()
            await until(lambda number=number: len(peer.applications) == number + 1)
            if number >= 2:
                reset(client)
                await until(lambda: sum(open_streams(peer)) == 2)
        assert len(peer.accepted) == 1


async def test_a_peer_that_allows_nothing_is_named(topology: Topology) -> None:
    none = TunnelSettings(max_streams=0)
    async with path(topology, far=None) as p, hbone_server(p.server, p.pki.leaf(SERVER_ID), settings=none):
        assert await p.is_refused()
        flow = await p.near.flow()
    assert f"{SERVER_IP}:15008 allows no streams" in flow.error


async def test_a_lost_tunnel_is_followed_by_another(topology: Topology) -> None:
    async with path(topology, far=None) as p, hbone_server(p.server, p.pki.leaf(SERVER_ID)) as peer:
        first = await p.connect()
        await until(lambda: peer.applications)
        peer.tunnels[0].close(Ending("maintenance"))
        assert await run(is_reset, first)
        second = await p.connect()
        await until(lambda: len(peer.applications) == 2)
        await works(second, peer.applications[1])


async def test_an_idle_tunnel_is_released_and_a_used_one_is_not(topology: Topology) -> None:
    hasty = msgspec.structs.replace(SETTINGS, pool_unused_release_timeout=0.2)
    async with path(topology, near=hasty) as p:
        app = p.application()
        client, served = await p.pair(app)
        await trio.sleep(0.5)  # more than twice the timeout, in use
        assert (await status(p.near))["tunnels"] == 1
        await works(client, served)
        client.close()
        served.close()
        await p.near.flow()
        assert (await status(p.near))["tunnels"] == 1
        with trio.fail_after(5):
            while (await status(p.near))["tunnels"] or (await status(p.far))["tunnels"]:  # noqa: ASYNC110
                await trio.sleep(0.02)
        again, again_served = await p.pair(app)
        await works(again, again_served)


async def test_connections_of_different_identities_share_nothing(topology: Topology) -> None:
    """Two services, two peers: a tunnel leads to one of them."""
    stranger = workload("stranger", STRANGER_IP, backs={"demo/old.demo": {80: 8080}})
    old = service("old", "10.100.0.9")
    async with (
        path(topology, far=None, workloads=(CLIENT, SERVER, stranger), services=(WEB, old)) as p,
        hbone_server(p.server, p.pki.leaf(SERVER_ID)) as one,
        hbone_server(p.stranger, p.pki.leaf("spiffe://cluster.local/ns/demo/sa/stranger")) as two,
    ):
        await p.connect(VIP, 80)
        await p.connect("10.100.0.9", 80)
        await until(lambda: one.applications and two.applications)
        assert (len(one.accepted), len(two.accepted)) == (1, 1)


async def test_a_failed_dial_fails_all_who_wait_and_is_tried_anew(topology: Topology) -> None:
    async with path(topology, far=None) as p:
        for _ in range(3):
            assert await p.is_refused()
        async with hbone_server(p.server, p.pki.leaf(SERVER_ID)) as peer:
            client = await p.connect()
            await until(lambda: peer.applications)
            await works(client, peer.applications[0])


@pytest.mark.parametrize("how", ["goaway", "refused"])
async def test_a_request_that_the_peer_has_not_looked_at_goes_into_another_tunnel(topology: Topology, how: str) -> None:
    """GOAWAY with an older last stream, and REFUSED_STREAM, promise that nothing was done (RFC 9113 8.7)."""
    async with path(topology, far=None) as p, hbone_server(p.server, p.pki.leaf(SERVER_ID)) as peer:
        first = await p.connect()
        await until(lambda: peer.applications)
        peer.answer = ""
        second = await p.connect()
        await until(lambda: len(peer.streams) == 2)
        peer.answer = "200"
        tunnel, stream = peer.tunnels[0], peer.streams[1]
        if how == "goaway":
            tunnel.write(frames.goaway(stream.id - 2, frames.NO_ERROR))
        else:
            tunnel.write(frames.rst_stream(stream.id, frames.REFUSED_STREAM))
        tunnel.streams.pop(stream.id)
        await until(lambda: len(peer.applications) == 2)
        await works(second, peer.applications[1])
        await works(first, peer.applications[0])


# ---- certificates ----


async def test_rotation_leaves_open_connections_alone_and_serves_new_handshakes(topology: Topology) -> None:
    async with path(topology) as p:
        app = p.application()
        client, served = await p.pair(app)
        for worker, identity in ((p.near, CLIENT_ID), (p.far, SERVER_ID)):
            worker.play(p.pki.leaf(identity))
        await works(client, served)
        another, another_served = await p.pair(app)
        await works(another, another_served)
        assert (await status(p.near))["tunnels"] == 1, "the open tunnel is as good as before"


async def test_new_handshakes_use_the_newest_certificate(topology: Topology) -> None:
    """Told by its serial number, as the peer sees it."""

    def serial(pem: bytes) -> int:
        return x509.load_pem_x509_certificates(pem)[0].serial_number

    async with path(topology, near=None) as p:
        for _ in range(3):
            leaf = p.pki.leaf(SERVER_ID)
            p.far.play(leaf)
            await status(p.far)
            with await run(partial(HboneClient, p.client, SERVER_IP, p.pki.leaf(CLIENT_ID))) as peer:
                assert peer.peer_certificate.serial_number == serial(leaf.chain_pem)


async def test_an_expired_certificate_is_not_used_but_replaced(topology: Topology) -> None:
    async with path(topology) as p:
        with Acceptor(p.server, None, 8080, banner=b"!"):
            p.near.play(p.pki.expired(CLIENT_ID))
            await status(p.near)
            wanted = _wanted(p)
            client = await p.connect()
            assert await run(client.recv, 1) == b"!"
            assert _wanted(p) == wanted + 1


async def test_a_ca_that_issues_only_expired_certificates_is_named(topology: Topology) -> None:
    async with path(topology, far=None) as p:
        p.near.issue = p.pki.expired
        p.near.play(p.pki.expired(CLIENT_ID))
        assert await p.is_refused()
        flow = await p.near.flow()
    assert flow.flag == "IDENTITY_ERROR"
    assert "expired" in flow.error


def _wanted(p: Path) -> int:
    return sum(isinstance(each, CertificateWanted) for each in p.near.said)
