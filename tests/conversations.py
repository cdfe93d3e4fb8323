"""What was said on a wire: the bytes of each direction of each connection, put together as their receiver does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ztunnel.core.model.address import Address
from ztunnel.linux.packets import Segment

SYN = 2


def conversations(segments: Iterable[Segment]) -> Mapping[tuple[Address, Address], bytes]:
    """By source and destination. Fails where a byte was not seen.

    A sender that is kept waiting says its last words again (RFC 8985 section 7), on a veth too.
    """
    found: dict[tuple[Address, Address], list[Segment]] = {}
    for segment in segments:
        found.setdefault((segment.source, segment.destination), []).append(segment)
    return {ends: _joined(said) for ends, said in found.items()}


def _joined(segments: Sequence[Segment]) -> bytes:
    origin = segments[0].sequence
    pieces = sorted(
        ((segment.sequence + (segment.flags & SYN != 0) - origin + 2**31) % 2**32, segment.payload)
        for segment in segments
    )
    joined, first = bytearray(), pieces[0][0]
    for start, payload in pieces:
        known = first + len(joined) - start
        assert known >= 0 or not payload, f"{-known} bytes before {payload[:16]!r} were not seen"
        joined += payload[max(known, 0) :]
    return bytes(joined)
