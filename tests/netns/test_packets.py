"""The sniffer sees what crosses a wire, byte for byte, and loses nothing unnoticed."""

from __future__ import annotations

import pytest
from conversations import conversations
from netns_builder import Acceptor, Topology

from ztunnel.core.errors import PlatformError
from ztunnel.core.model.address import Address
from ztunnel.linux.packets import Segment, Sniffer


def test_a_conversation_has_each_byte_once_whatever_was_sent_again() -> None:
    ends = Address("10.0.0.1", 4000), Address("10.0.0.2", 80)
    start = 2**32 - 3
    sent = [
        (start, 2, b""),
        (start + 1, 16, b"ab"),
        (0, 16, b"cd"),
        (start + 2, 16, b"bc"),
        (2, 16, b"e"),
        (0, 16, b"cd"),
        (3, 17, b""),
    ]
    segments = [Segment(*ends, flags, sequence, payload) for sequence, flags, payload in sent]
    assert conversations(segments) == {ends: b"abcde"}
    with pytest.raises(AssertionError, match="2 bytes before b'e' were not seen"):
        conversations(segments[:2] + segments[4:5])


@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
def test_every_payload_byte_is_seen_in_both_directions(topology: Topology, family: int) -> None:
    client = topology.pod("client", "10.0.1.2", "fd00:1::2")
    server = topology.pod("server", "10.0.2.2", "fd00:2::2", node=topology.node("node2"))
    data = bytes(range(256)) * 4096
    with Acceptor(server, None, 80), Sniffer("eth0", server.node.fd) as sniffer:
        with client.connect(server.addresses[family], 80) as sock:
            sock.settimeout(5)
            back = b""
            for start in range(0, len(data), 65536):
                sock.sendall(data[start : start + 65536])
                while len(back) < min(start + 65536, len(data)):
                    back += sock.recv(65536)
            mine = sock.getsockname()[1]
        segments = sniffer.read()
    assert sniffer.dropped == 0
    ends = (client.addresses[family], mine), (server.addresses[family], 80)
    said = conversations(segments)
    assert said.keys() == {ends, ends[::-1]}
    assert said[ends] == said[ends[::-1]] == back == data
    assert segments[0].flags == 2


def test_on_the_loopback_each_segment_is_seen_once(topology: Topology) -> None:
    pod = topology.pod("pod", "10.0.1.2")
    with Acceptor(pod, None, 80), Sniffer("lo", pod.fd) as sniffer, pod.connect("127.0.0.1", 80) as sock:
        sock.sendall(b"once")
        assert sock.recv(4) == b"once"
        payloads = [segment.payload for segment in sniffer.read() if segment.payload]
    assert payloads == [b"once", b"once"]


def test_all_interfaces_and_none(topology: Topology) -> None:
    pod = topology.pod("pod", "10.0.1.2")
    with Acceptor(pod, None, 80), Sniffer(None, pod.fd) as sniffer, pod.node.connect(pod.ip4, 80) as sock:
        sock.sendall(b"hello")
        assert sock.recv(5) == b"hello"
        assert b"hello" in [segment.payload for segment in sniffer.read()]
    with pytest.raises(PlatformError, match="cannot look at interface 'nope'"):
        Sniffer("nope", pod.fd)
