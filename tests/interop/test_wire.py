"""What a packet socket sees between two nodes: nothing but TLS 1.3 records, and never a byte of what applications say.

Each marker is also looked for without capture, where it must be seen: the eye that finds nothing can see.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import pytest
from conversations import conversations
from netns_builder import Acceptor, Topology
from path_mesh import SERVER_IP, SERVER_IP6, VIP, VIP6, path, read_exactly, run

from ztunnel.linux.packets import Segment, Sniffer
from ztunnel.linux.redirect.apply import remove

HBONE_PORT = 15008
HANDSHAKE, CHANGE_CIPHER_SPEC, APPLICATION_DATA, ALERT = 22, 20, 23, 21
"""Content types of TLS records (RFC 8446 section 5.1)."""
HELLOS = (1, 2)
"""Handshake messages that TLS 1.3 sends in the clear: ClientHello and ServerHello (section 4)."""
FAMILIES = [pytest.param(VIP, SERVER_IP, id="ipv4"), pytest.param(VIP6, SERVER_IP6, id="ipv6")]


@pytest.mark.parametrize(("vip", "server_ip"), FAMILIES)
async def test_between_the_nodes_there_are_only_tls_records_on_15008(
    topology: Topology, vip: str, server_ip: str
) -> None:
    up, down = os.urandom(64), os.urandom(64)
    async with path(topology) as p:
        with Acceptor(p.server, server_ip, 8080, banner=down), Sniffer("eth0", p.client.node.fd) as wire:
            client = await p.connect(vip, 80)
            assert await run(read_exactly, client, 64) == down
            await run(client.sendall, up * 1000)
            assert await run(read_exactly, client, 64_000) == up * 1000
            client.close()
            await p.far.flow()
            segments = await run(wire.read)
    assert wire.dropped == 0
    assert {HBONE_PORT in (segment.source.port, segment.destination.port) for segment in segments} == {True}
    for words in (up, down, b"CONNECT", b"HTTP/2", b"spiffe", b"cluster.local", b"baggage"):
        assert not seen(words, segments)
    assert content_types(conversations(segments).values()) <= {HANDSHAKE, CHANGE_CIPHER_SPEC, APPLICATION_DATA, ALERT}
    assert sum(len(segment.payload) for segment in segments) > 128_000


@pytest.mark.parametrize(("vip", "server_ip"), FAMILIES)
async def test_of_the_handshake_only_the_hellos_are_readable(topology: Topology, vip: str, server_ip: str) -> None:
    """Certificates, and with them who talks, are encrypted in TLS 1.3."""
    async with path(topology) as p:
        with Acceptor(p.server, server_ip, 8080, banner=b"x"), Sniffer("eth0", p.client.node.fd) as wire:
            client = await p.connect(vip, 80)
            assert await run(read_exactly, client, 1) == b"x"
            segments = await run(wire.read)
    talks = conversations(segments).values()
    messages = [body[0] for talk in talks for kind, body in records(talk) if kind == HANDSHAKE]
    assert sorted(messages) == list(HELLOS)


async def test_without_capture_the_same_words_are_seen(topology: Topology) -> None:
    marker = os.urandom(64)
    async with path(topology) as p:
        await run(remove, p.client.fd)
        await run(remove, p.server.fd)
        with Acceptor(p.server, SERVER_IP, 8080), Sniffer("eth0", p.client.node.fd) as wire:
            client = await p.connect(SERVER_IP, 8080)
            await run(client.sendall, marker)
            assert await run(read_exactly, client, 64) == marker
            segments = await run(wire.read)
    assert seen(marker, segments)


def seen(words: bytes, segments: Sequence[Segment]) -> bool:
    """In one segment, or across segments of one direction."""
    return any(words in segment.payload for segment in segments) or any(
        words in talk for talk in conversations(segments).values()
    )


def records(talk: bytes) -> list[tuple[int, bytes]]:
    """Content type and body of each TLS record; fails where there is none (RFC 8446 section 5.1)."""
    found = []
    while talk:
        size = int.from_bytes(talk[3:5])
        assert talk[1:3] in (b"\x03\x01", b"\x03\x03"), talk[:16]
        assert len(talk) >= 5 + size
        found.append((talk[0], talk[5 : 5 + size]))
        talk = talk[5 + size :]
    return found


def content_types(talks: Iterable[bytes]) -> set[int]:
    return {kind for talk in talks for kind, _ in records(talk)}
