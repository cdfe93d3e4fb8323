"""Looks at the packets on an interface: what really crosses a wire, for the demo and the tests.

A packet socket sees what enters and leaves an interface. Only TCP is decoded, only headers without IPv6 extensions.
Big packets appear as the kernel hands them over (up to 64 KiB, before segmentation).

Knows nothing of TLS or the mesh; `plaintext in segment.payload` is the caller's question.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from types import TracebackType
from typing import NamedTuple, Self

from ztunnel.core.errors import PlatformError
from ztunnel.core.model.address import Address
from ztunnel.linux.constants import (
    ETH_P_ALL,
    ETH_P_IP,
    ETH_P_IPV6,
    PACKET_OUTGOING,
    PACKET_STATISTICS,
    SO_RCVBUFFORCE,
    SOL_PACKET,
)
from ztunnel.linux.netns import in_netns

_BUFFER = 64 * 1024 * 1024
_LONGEST = 1 << 18


class Segment(NamedTuple):
    """A TCP segment as seen on the wire."""

    source: Address
    destination: Address
    flags: int
    """FIN 1, SYN 2, RST 4, PSH 8, ACK 16 (RFC 9293 section 3.1)."""
    sequence: int
    """Of the first byte of the payload, or of the SYN before it."""
    payload: bytes


class Sniffer:
    """Collects the TCP segments of an interface (None: of all) in a namespace (None: our own).

    Non-blocking: `read` returns what came since the last call. Raises PlatformError without CAP_NET_RAW or when the
    interface is not there.
    """

    def __init__(self, interface: str | None, netns: int | None = None) -> None:
        self.dropped = 0
        """Packets that came faster than they were read; then the picture is not whole."""
        try:
            with in_netns(netns):
                kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
                self._sock = socket.socket(socket.AF_PACKET, kind, 0 if interface else socket.htons(ETH_P_ALL))
        except PermissionError:
            raise PlatformError("may not look at packets", hint="run as root, or grant CAP_NET_RAW") from None
        try:
            self._sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, _BUFFER)
        except PermissionError:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        try:
            if interface:
                self._sock.bind((interface, ETH_P_ALL))
        except OSError as error:
            self._sock.close()
            raise PlatformError(f"cannot look at interface {interface!r}: {error.strerror}") from None

    def fileno(self) -> int:
        return self._sock.fileno()

    def read(self) -> list[Segment]:
        """The segments that came since the last call, oldest first. On `lo` each is seen once."""
        return list(self._segments())

    def close(self) -> None:
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _segments(self) -> Iterator[Segment]:
        while True:
            try:
                packet, (interface, protocol, way, *_) = self._sock.recvfrom(_LONGEST)
            except BlockingIOError:
                break
            if way == PACKET_OUTGOING and interface == "lo":
                continue
            segment = _decode(protocol, packet)
            if segment is not None:
                yield segment
        statistics = self._sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8)
        self.dropped += struct.unpack("II", statistics)[1]


def _decode(protocol: int, packet: bytes) -> Segment | None:
    if protocol == ETH_P_IP and len(packet) >= 20 and packet[9] == socket.IPPROTO_TCP:
        start = (packet[0] & 0x0F) * 4
        end = int.from_bytes(packet[2:4]) or len(packet)  # zero: longer than the field can say
        ends = (socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20]))
    elif protocol == ETH_P_IPV6 and len(packet) >= 40 and packet[6] == socket.IPPROTO_TCP:
        start = 40
        end = start + (int.from_bytes(packet[4:6]) or len(packet) - start)
        ends = (socket.inet_ntop(socket.AF_INET6, packet[8:24]), socket.inet_ntop(socket.AF_INET6, packet[24:40]))
    else:
        return None
    segment = packet[start:end]
    if len(segment) < 20:
        return None
    source_port, destination_port, sequence = struct.unpack_from("!HHI", segment)
    payload = segment[(segment[12] >> 4) * 4 :]
    return Segment(Address(ends[0], source_port), Address(ends[1], destination_port), segment[13], sequence, payload)
