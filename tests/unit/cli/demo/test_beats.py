"""The wire beat believes only what proves it: each way in which the wire could be wrong is found."""

from __future__ import annotations

import pytest

from ztunnel.cli.demo.beats import Traffic, only_tls
from ztunnel.cli.demo.stage import Answer, StageError
from ztunnel.core.model.address import Address
from ztunnel.linux.packets import Segment

CLIENT, SERVER = "10.1.0.2", "10.2.0.2"
SECRET = "s3cret-00000000"
TLS = b"\x17\x03\x03\x00\x20" + bytes(32)


def segment(payload: bytes, port: int = 15008) -> Segment:
    return Segment(Address(CLIENT, 40000), Address(SERVER, port), 16, 0, payload)


PLAIN = (segment(f"GET /hello HTTP/1.1\r\nX-Secret: {SECRET}\r\n\r\n".encode(), 8080),)


def traffic(*wire: Segment, inside: tuple[Segment, ...] = PLAIN) -> Traffic:
    return Traffic(SECRET, Answer(200, SECRET), {}, wire, inside)


def test_tls_to_15008_and_nothing_else_is_proof() -> None:
    said = only_tls(traffic(segment(b""), segment(TLS)))
    assert "2 packets, 37 bytes, all of port 15008" in said
    assert "17 03 03 00 20" in said
    assert "'GET /hello HTTP/'" in said


@pytest.mark.parametrize(
    ("wire", "complaint"),
    [
        ([segment(TLS), segment(b"xx" + SECRET.encode())], "in plain text"),
        ([segment(TLS), segment(b"", 8080)], "port 8080 crossed the wire"),
        ([segment(TLS), segment(b"x", 9999)], "besides the tunnel"),
        ([], "nothing was sent to port 15008"),
        ([segment(b"")], "nothing was sent to port 15008"),
        ([segment(b"GET / HTTP/1.1\r\n")], "is no TLS"),
    ],
)
def test_anything_else_is_not(wire: list[Segment], complaint: str) -> None:
    with pytest.raises(StageError, match=complaint):
        only_tls(traffic(*wire))


def test_a_sniffer_that_sees_no_plain_text_where_there_is_some_proves_nothing() -> None:
    with pytest.raises(StageError, match="does not see the secret even where it is plain"):
        only_tls(traffic(segment(TLS), inside=()))
