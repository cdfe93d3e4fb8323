"""What goes in comes out, in tunnels and plainly, over IPv4 and IPv6, from one byte to a hundred megabytes."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator

import pytest
from netns_builder import Acceptor, Topology
from path_mesh import (
    SERVER_IP,
    SERVER_IP6,
    STRANGER_IP,
    STRANGER_IP6,
    VIP,
    VIP6,
    path,
    read_all,
    read_exactly,
    run,
    together,
)

SIZES = [1, 65_535, 1_000_003, 100_000_000]
DESTINATIONS = {
    "hbone4": (VIP, 80),
    "hbone6": (VIP6, 80),
    "workload4": (SERVER_IP, 8080),
    "workload6": (SERVER_IP6, 8080),
    "plain4": (STRANGER_IP, 8080),
    "plain6": (STRANGER_IP6, 8080),
}


def _pieces(size: int) -> Iterator[bytes]:
    """Bytes that repeat nowhere near a buffer's size."""
    block = hashlib.shake_256(b"the path").digest(1 << 20) + b"odd"
    while size > 0:
        yield block[:size]
        size -= len(block)


def _send(sock: socket.socket, size: int) -> str:
    digest = hashlib.blake2b()
    for piece in _pieces(size):
        sock.sendall(piece)
        digest.update(piece)
    sock.shutdown(socket.SHUT_WR)
    return digest.hexdigest()


def _receive(sock: socket.socket) -> str:
    digest = hashlib.blake2b()
    while piece := sock.recv(1 << 20):
        digest.update(piece)
    return digest.hexdigest()


@pytest.mark.parametrize("destination", ["hbone4", "plain4"])
@pytest.mark.parametrize("size", SIZES)
async def test_both_directions_at_once_are_unchanged(topology: Topology, destination: str, size: int) -> None:
    digests: dict[str, str] = {}
    async with path(topology) as p:
        ip, port = DESTINATIONS[destination]
        at = p.stranger if destination == "plain4" else p.server
        client, served = await p.pair(p.application(at=at), ip, port)
        await together(
            lambda: digests.update(up=_send(client, size)),
            lambda: digests.update(up_seen=_receive(served)),
            lambda: digests.update(down=_send(served, size // 2 + 1)),
            lambda: digests.update(down_seen=_receive(client)),
        )
        flow = await p.near.flow()
    assert digests["up"] == digests["up_seen"]
    assert digests["down"] == digests["down_seen"]
    assert (flow.error, flow.bytes_sent, flow.bytes_received) == ("", size, size // 2 + 1)


@pytest.mark.parametrize("destination", DESTINATIONS)
async def test_a_server_that_speaks_first_is_heard(topology: Topology, destination: str) -> None:
    ip, port = DESTINATIONS[destination]
    async with path(topology) as p:
        with Acceptor(p.stranger if destination.startswith("plain") else p.server, None, 8080, banner=b"SSH-2.0-x\r\n"):
            sock = await p.connect(ip, port)
            assert await run(read_exactly, sock, 11) == b"SSH-2.0-x\r\n"
            await run(sock.sendall, b"SSH-2.0-y\r\n")
            sock.shutdown(socket.SHUT_WR)
            assert await run(read_all, sock) == b"SSH-2.0-y\r\n"
            flow = await p.near.flow()
    assert not flow.error
    assert bool(flow.hbone_address) != destination.startswith("plain")


async def test_an_ipv6_tunnel_names_its_destination_in_brackets(topology: Topology) -> None:
    async with path(topology) as p:
        with Acceptor(p.server, None, 8080):
            sock = await p.connect(VIP6, 80)
            sock.close()
            flow = await p.far.flow()
    assert flow.hbone_address == f"[{SERVER_IP6}]:8080"
    assert str(flow.destination) == f"[{SERVER_IP6}]:15008"
