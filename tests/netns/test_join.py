"""Two pods of one worker: authorized over the real path, carried from socket to socket, ended like any other."""

from __future__ import annotations

import hashlib
from contextlib import suppress

import msgspec
import pytest
import trio
from netns_builder import Acceptor, Topology
from two_pods import DENY_CLIENT, SERVER_IP, SETTINGS, VIP, one_node, talk

from ztunnel.link.messages import Counters, Question, StateSlice
from ztunnel.worker.engine.tcp import abort_on_close


def bytes_in_tunnels(counters: object) -> int:
    assert isinstance(counters, Counters)
    return sum(sum(pair) for pair in counters.open_bytes.values())


@pytest.mark.parametrize("join", [True, False])
async def test_both_sides_tell_the_same_flow_joined_or_not(topology: Topology, join: bool) -> None:
    async with one_node(topology, msgspec.structs.replace(SETTINGS, same_node_join=join)) as m:
        with Acceptor(m.server, SERVER_IP, 8080), await m.connect(VIP, 80) as sock:
            assert await talk(sock, b"over the counter") == b"over the counter"
        flows = [await m.near.flow(1), await m.near.flow(2)]
    assert {flow.direction.value for flow in flows} == {"inbound", "outbound"}
    for flow in flows:
        assert (flow.error, flow.bytes_sent, flow.bytes_received) == ("", 16, 16)
        assert flow.hbone_address == f"{SERVER_IP}:8080"
        assert m.near.edges[flow.edge].mutual_tls


async def test_bulk_arrives_whole_through_a_join(topology: Topology) -> None:
    payload = bytes(range(251)) * 100_000
    async with one_node(topology) as m:
        with Acceptor(m.server, SERVER_IP, 8080), await m.connect(VIP, 80) as sock:

            def exchange() -> str:
                got = hashlib.sha256()
                sent = size = 0
                sock.setblocking(False)
                while size < len(payload):
                    if sent < len(payload):
                        with suppress(BlockingIOError):
                            sent += sock.send(payload[sent : sent + 262_144])
                    try:
                        piece = sock.recv(262_144)
                    except BlockingIOError:
                        continue
                    assert piece, "the connection ended early"
                    got.update(piece)
                    size += len(piece)
                return got.hexdigest()

            assert await trio.to_thread.run_sync(exchange) == hashlib.sha256(payload).hexdigest()


async def test_a_denied_caller_is_refused_as_between_nodes(topology: Topology) -> None:
    async with one_node(topology) as m:
        m.near.play(StateSlice(policies=(DENY_CLIENT,)))
        with Acceptor(m.server, SERVER_IP, 8080) as app:
            with pytest.raises(ConnectionResetError), await m.connect(VIP, 80) as sock:
                await talk(sock, b"x")
            await m.near.flow(2)
            assert not app.seen


async def test_a_policy_applied_live_cuts_a_joined_connection(topology: Topology) -> None:
    async with one_node(topology) as m:
        with Acceptor(m.server, SERVER_IP, 8080, banner=b"welcome"), await m.connect(VIP, 80) as sock:
            assert await trio.to_thread.run_sync(sock.recv, 7) == b"welcome"
            m.near.play(StateSlice(policies=(DENY_CLIENT,)))
            with pytest.raises(ConnectionResetError):
                await trio.to_thread.run_sync(sock.recv, 1)
            flows = [await m.near.flow(1), await m.near.flow(2)]
    inbound = next(flow for flow in flows if flow.direction.value == "inbound")
    assert inbound.flag == "DENY"
    assert all(flow.error for flow in flows)


async def test_a_reset_by_the_client_resets_the_application(topology: Topology) -> None:
    async with one_node(topology) as m:
        with Acceptor(m.server, SERVER_IP, 8080, banner=b"hi"):
            sock = await m.connect(VIP, 80)
            assert await trio.to_thread.run_sync(sock.recv, 2) == b"hi"
            abort_on_close(sock)
            sock.close()
            flows = [await m.near.flow(1), await m.near.flow(2)]
    assert all("reset" in flow.error for flow in flows)


async def test_open_joins_are_counted_while_they_last(topology: Topology) -> None:
    async with one_node(topology) as m:
        with Acceptor(m.server, SERVER_IP, 8080, banner=b"twelve bytes"), await m.connect(VIP, 80) as sock:
            assert await trio.to_thread.run_sync(sock.recv, 12) == b"twelve bytes"
            assert bytes_in_tunnels(await m.near.ask(Question.COUNTERS)) == 24
