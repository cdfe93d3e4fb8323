"""Two workers, played by nothing but messages, carry a captured connection between two namespaces."""

from __future__ import annotations

import pytest
import trio
from netns_builder import Acceptor, Topology
from two_pods import DENY_CLIENT, SERVER, SERVER_IP, VIP, mesh, talk

from ztunnel.link.messages import Drain, Drained, Question, StateSlice


async def test_a_captured_connection_crosses_in_a_tunnel_and_leaves_one_flow_on_each_side(topology: Topology) -> None:
    async with mesh(topology) as m:
        with Acceptor(m.server, SERVER_IP, 8080):
            with await m.connect(VIP, 80) as sock:
                assert await talk(sock, b"hello through the mesh") == b"hello through the mesh"
            outbound, inbound = await m.near.flow(), await m.far.flow()
    assert (outbound.error, outbound.bytes_sent, outbound.bytes_received) == ("", 22, 22)
    assert str(outbound.destination) == f"{SERVER_IP}:15008"
    assert outbound.hbone_address == inbound.hbone_address == f"{SERVER_IP}:8080"
    edge = m.far.edges[inbound.edge]
    assert edge.source.identity == "spiffe://cluster.local/ns/demo/sa/client"
    assert edge.service_hostname == "web.demo"
    assert edge.mutual_tls


async def test_a_denied_caller_is_refused_before_the_application_is_reached(topology: Topology) -> None:
    async with mesh(topology) as m:
        m.far.play(StateSlice(policies=(DENY_CLIENT,)))
        with Acceptor(m.server, SERVER_IP, 8080) as app:
            with pytest.raises(ConnectionResetError), await m.connect(VIP, 80) as sock:
                await talk(sock, b"x")
            outbound, inbound = await m.near.flow(), await m.far.flow()
            assert not app.seen
    assert inbound.flag == "DENY"
    assert "explicitly denied by: demo/no-client" in inbound.error
    assert "401" in outbound.error


async def test_a_policy_applied_live_closes_the_open_connection(topology: Topology) -> None:
    async with mesh(topology) as m:
        with Acceptor(m.server, SERVER_IP, 8080, banner=b"welcome"), await m.connect(VIP, 80) as sock:
            assert await trio.to_thread.run_sync(sock.recv, 7) == b"welcome"
            m.far.play(StateSlice(policies=(DENY_CLIENT,)))
            with pytest.raises(ConnectionResetError):
                await trio.to_thread.run_sync(sock.recv, 1)
            inbound = await m.far.flow()
    assert inbound.flag == "DENY"
    assert "policy change" in inbound.error


async def test_an_unknown_destination_passes_straight_through(topology: Topology) -> None:
    async with mesh(topology) as m:
        m.near.play(StateSlice(removed_workloads=(SERVER.uid,)))
        with Acceptor(m.server, SERVER_IP, 8080):
            with await m.connect(SERVER_IP, 8080) as sock:
                assert await talk(sock, b"plain") == b"plain"
            flow = await m.near.flow()
    assert flow.why == "unknown destination, passed through"
    assert flow.error == ""


async def test_connections_share_a_tunnel_and_a_hundred_fill_it(topology: Topology) -> None:
    async with mesh(topology) as m:
        with Acceptor(m.server, SERVER_IP, 8080, banner=b"hi"):
            socks = [await m.connect(VIP, 80) for _ in range(101)]
            for sock in socks:
                assert await trio.to_thread.run_sync(sock.recv, 2) == b"hi"
            status = await m.near.ask(Question.STATUS)
            for sock in socks:
                sock.close()
            await m.near.flow(101)
    assert status["tunnels"] == 2
    assert status["connections"] == 101


async def test_drain_lets_connections_finish_and_cuts_the_rest_at_the_deadline(topology: Topology) -> None:
    async with mesh(topology) as m:
        with Acceptor(m.server, SERVER_IP, 8080, banner=b"hi"), await m.connect(VIP, 80) as sock:
            assert await trio.to_thread.run_sync(sock.recv, 2) == b"hi"
            m.near.play(Drain(0.05))
            assert (await m.near.heard(Drained)).cut == 1
            with pytest.raises(ConnectionResetError):
                await trio.to_thread.run_sync(sock.recv, 1)
            flow = await m.near.flow()
    assert "drain deadline" in flow.error
