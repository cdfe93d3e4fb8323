"""Every time limit ends a set-up that hangs, with a named refusal; made short here, real clocks all the same."""

from __future__ import annotations

import socket

import msgspec
import pytest
from netns_builder import Topology
from path_mesh import (
    CLIENT_ID,
    MARK,
    SERVER_ID,
    SERVER_IP,
    SETTINGS,
    STRANGER_IP,
    Path,
    is_reset,
    path,
    read_exactly,
    run,
    status,
    until,
)
from raw_peers import HboneClient, hbone_server
from worker_mesh import PlayedWorker

from ztunnel.config.settings import Settings

SHORT = 0.2


def short(**limits: float) -> Settings:
    return msgspec.structs.replace(SETTINGS, **limits)


def swallow(p: Path, port: int) -> None:
    """The network of the server's pod drops what is sent to this port."""
    for pod in (p.server, p.stranger):
        pod.run(["iptables", "-A", "INPUT", "-p", "tcp", "--dport", str(port), "-j", "DROP"])


async def nothing_is_left(worker: PlayedWorker) -> None:
    found = await status(worker)
    assert (found["connections"], found["tunnels"]) == (0, 0)


async def test_silence_on_the_tunnel_port_hints_at_a_network_policy(topology: Topology) -> None:
    async with path(topology, near=short(connect_timeout=SHORT)) as p:
        await run(swallow, p, 15008)
        client = await p.connect()
        assert await run(is_reset, client)
        flow = await p.near.flow()
        await nothing_is_left(p.near)
    assert flow.flag == "NETWORK_POLICY"
    assert f"cannot connect to {SERVER_IP}:15008: no answer within 0.2 s" in flow.error
    assert "a NetworkPolicy or firewall may block port 15008" in flow.error
    assert str(flow.destination) == f"{SERVER_IP}:15008"
    assert p.near.edges[flow.edge].destination.name == "server"


async def test_silence_of_a_plain_destination(topology: Topology) -> None:
    async with path(topology, near=short(connect_timeout=SHORT)) as p:
        await run(swallow, p, 8080)
        client = await p.connect(STRANGER_IP, 8080)
        assert await run(is_reset, client)
        flow = await p.near.flow()
        await nothing_is_left(p.near)
    assert flow.flag == "CONNECT"
    assert f"cannot connect to {STRANGER_IP}:8080: no answer within 0.2 s" in flow.error


async def test_silence_of_the_application_is_told_to_both_sides(topology: Topology) -> None:
    async with path(topology, far=short(connect_timeout=SHORT)) as p:
        await run(swallow, p, 8080)
        client = await p.connect()
        assert await run(is_reset, client)
        outbound, inbound = await p.near.flow(), await p.far.flow()
    assert f"cannot connect to {SERVER_IP}:8080: no answer within 0.2 s" in inbound.error
    assert "503" in outbound.error


async def test_a_peer_that_never_begins_tls(topology: Topology) -> None:
    async with path(topology, near=None, far=short(tls_handshake_timeout=SHORT)) as p:
        sock = await run(lambda: p.client.connect(SERVER_IP, 15008, mark=MARK))
        with sock:
            await run(read_exactly, sock, 1)
        flow = await p.far.flow()
        await nothing_is_left(p.far)
    assert "no TLS handshake within 0.2 s" in flow.error


async def test_a_peer_that_never_answers_tls(topology: Topology) -> None:
    settings = short(tls_handshake_timeout=SHORT)
    async with (
        path(topology, near=settings, far=None) as p,
        hbone_server(p.server, p.pki.leaf(SERVER_ID), silent="tcp"),
    ):
        client = await p.connect()
        assert await run(is_reset, client)
        flow = await p.near.flow()
        await nothing_is_left(p.near)
    assert "no TLS handshake within 0.2 s" in flow.error
    assert str(flow.destination) == f"{SERVER_IP}:15008"


async def test_a_peer_that_never_begins_http2(topology: Topology) -> None:
    async with path(topology, near=None, far=short(http2_preface_timeout=SHORT)) as p:
        with await run(lambda: HboneClient(p.client, SERVER_IP, p.pki.leaf(CLIENT_ID), preface=False)) as peer:
            while await run(peer.read_raw):
                pass
        flow = await p.far.flow()
        await nothing_is_left(p.far)
    assert "no HTTP/2 preface within 0.2 s" in flow.error


async def test_a_peer_that_never_answers_http2(topology: Topology) -> None:
    settings = short(http2_preface_timeout=SHORT)
    async with (
        path(topology, near=settings, far=None) as p,
        hbone_server(p.server, p.pki.leaf(SERVER_ID), silent="tls"),
    ):
        client = await p.connect()
        assert await run(is_reset, client)
        flow = await p.near.flow()
        await nothing_is_left(p.near)
    assert "no HTTP/2 preface within 0.2 s" in flow.error


async def test_a_connect_that_is_never_answered_costs_only_itself(topology: Topology) -> None:
    settings = short(connect_response_timeout=SHORT)
    async with (
        path(topology, near=settings, far=None) as p,
        hbone_server(p.server, p.pki.leaf(SERVER_ID)) as peer,
    ):
        answered = await p.connect()
        await until(lambda: peer.applications)
        peer.answer = ""
        waiting = await p.connect()
        assert await run(is_reset, waiting)
        flow = await p.near.flow()
        await run(answered.sendall, b"on")
        assert await run(read_exactly, peer.applications[0], 2) == b"on"
        assert (await status(p.near))["tunnels"] == 1
    assert "no answer to CONNECT within 0.2 s" in flow.error


async def test_a_tunnel_whose_peer_stops_answering_is_given_up(topology: Topology) -> None:
    settings = short(ping_interval=0.1, ping_timeout=SHORT)
    async with (
        path(topology, near=settings, far=None) as p,
        hbone_server(p.server, p.pki.leaf(SERVER_ID)) as peer,
    ):
        client = await p.connect()
        await until(lambda: peer.applications)
        peer.loop.remove(peer.accepted[0].fileno())  # it hangs
        assert await run(is_reset, client)
        flow = await p.near.flow()
        await nothing_is_left(p.near)
    assert "did not answer a PING within 0.2 s" in flow.error


@pytest.mark.parametrize("listener", [15001, 15006])
async def test_a_captured_client_may_be_silent_as_long_as_it_likes(topology: Topology, listener: int) -> None:
    """No limit ends an open connection that is idle."""
    every = dict.fromkeys(
        ("connect_timeout", "tls_handshake_timeout", "http2_preface_timeout", "connect_response_timeout"), SHORT
    )
    async with path(topology, near=short(**every), far=short(**every)) as p:
        app = p.application()
        at = p.client if listener == 15001 else p.stranger
        client = await p.connect(SERVER_IP, 8080, at=at)
        served = await app.accept()
        client.settimeout(3 * SHORT)
        with pytest.raises(socket.timeout):
            await run(client.recv, 1)
        await run(client.sendall, b"hello")
        assert await run(read_exactly, served, 5) == b"hello"
