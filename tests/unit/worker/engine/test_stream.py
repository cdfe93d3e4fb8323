"""One CONNECT stream: windows, half-close, resets and slow readers, seen frame by frame."""

from __future__ import annotations

import socket

import pytest
from engine_pair import CONNECT, Conversation, Raw, fill, read_now, tcp_pair

from ztunnel.core.wire import frames
from ztunnel.worker.engine.h2 import Settings
from ztunnel.worker.engine.tcp import abort_on_close

END = frames.END_STREAM
SMALL = Settings(stream_window=65_535, connection_window=65_535 * 4)


def data(stream: int, body: bytes, flags: int = 0) -> bytes:
    return frames.frame(frames.DATA, flags, stream, body)


def padded(stream: int, body: bytes, padding: int, flags: int = 0) -> bytes:
    return data(stream, bytes([padding]) + body + bytes(padding), flags | frames.PADDED)


def reset(stream: int, code: int) -> bytes:
    return frames.rst_stream(stream, code)


def credit(raw: Raw, stream: int) -> int:
    return sum(int.from_bytes(f.body, "big") for f in raw.frames(frames.WINDOW_UPDATE) if f.stream == stream)


def is_reset(sock: socket.socket) -> bool:
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        return True
    return False


def test_padding_is_given_back_to_the_window() -> None:
    with Raw(settings=SMALL) as raw:
        raw.greet()
        raw.request()
        for _ in range(100):
            raw.send(padded(1, b"x", 200))
        assert read_now(raw.side.applications[0]) == b"x" * 100
        taken = 100 * 202
        assert credit(raw, 1) > taken - 65_535 // 4


def test_data_after_the_end_of_a_stream_resets_it() -> None:
    with Raw() as raw:
        raw.greet()
        raw.request()
        raw.send(data(1, b"all", END) + data(1, b"more"))
        assert raw.resets() == {1: frames.STREAM_CLOSED}
        assert raw.goaway() is None
        ending = raw.side.conversations[0].ending
        assert ending is not None
        assert "after the end" in ending.error


def test_headers_after_the_end_of_a_stream_reset_it() -> None:
    with Raw() as raw:
        raw.greet()
        raw.request()
        raw.send(data(1, b"all", END))
        raw.request(1, END)
        assert raw.resets() == {1: frames.STREAM_CLOSED}


def test_trailers_end_a_stream_like_an_empty_frame() -> None:
    with Raw() as raw:
        raw.greet()
        raw.request()
        raw.send(data(1, b"all"))
        raw.request(1, END, frames.encode_header("x", "y"))
        assert read_now(raw.side.applications[0]) == b"all"
        assert raw.resets() == {}
        raw.side.applications[0].close()
        raw.turn()
        assert raw.frames(frames.DATA)[-1].flags & END
        ending = raw.side.conversations[0].ending
        assert ending is not None
        assert ending.ok


def test_a_complete_answer_survives_a_reset_without_error() -> None:
    """RFC 9113 section 8.1: a server may ask to stop after a complete answer; the answer is kept."""
    with Raw(client=True) as raw:
        raw.greet()
        app, _, conversation = raw.open()
        app.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.send(frames.frame(frames.HEADERS, frames.END_HEADERS, 1, frames.RESPONSE_200))
        body = bytes(1_000_000)
        raw.send(b"".join(data(1, body[:50_000]) for _ in range(20)) + data(1, b"", END) + reset(1, frames.NO_ERROR))
        got = bytearray()
        while conversation.ending is None:
            got += read_now(app)
            raw.turn()
        got += read_now(app)
        assert len(got) == len(body)
        assert conversation.ending.ok


def test_an_application_that_still_speaks_gets_the_whole_answer_too() -> None:
    """Closing a socket with unread bytes would reset it, and the end of the answer would be lost."""
    with Raw(client=True) as raw:
        raw.greet(b"\0\4\0\0\0\0")
        app, near = tcp_pair()
        conversation = Conversation()
        raw.tunnel.open_stream(CONNECT, conversation).attach(near)
        app.send(bytes(1000))
        raw.send(frames.frame(frames.HEADERS, frames.END_HEADERS, 1, frames.RESPONSE_200))
        raw.send(data(1, b"enough", END) + reset(1, frames.NO_ERROR))
        assert conversation.ending is not None
        assert conversation.ending.ok
        app.send(bytes(1000))
        raw.turn()
        assert app.recv(100) == b"enough"
        assert app.recv(100) == b""
        app.send(b"one more")
        app.close()
        raw.turn()
        assert len(raw.loop.lingering) == 0


@pytest.mark.parametrize("code", [frames.CANCEL, frames.INTERNAL_ERROR, frames.NO_ERROR])
def test_a_reset_of_the_peer_resets_the_application(code: int) -> None:
    with Raw() as raw:
        raw.greet()
        raw.request()
        near, far = tcp_pair()
        raw.side.answer = ""
        raw.request(3)
        stream = raw.tunnel.streams[3]
        stream.attach(near)
        conversation = Conversation()
        raw.tunnel.accept(stream, frames.RESPONSE_200, conversation)
        raw.send(data(3, b"half a") + reset(3, code))
        assert far.recv(6) == b"half a"
        assert is_reset(far)
        assert conversation.ending is not None
        assert frames.error_name(code) in conversation.ending.error
        far.close()


def test_a_reset_of_the_application_resets_the_stream_once() -> None:
    with Raw() as raw:
        raw.greet()
        raw.side.answer = ""
        raw.request()
        near, far = tcp_pair()
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stream = raw.tunnel.streams[1]
        conversation = Conversation()
        stream.attach(near)
        raw.tunnel.accept(stream, frames.RESPONSE_200, conversation)
        for _ in range(250):
            raw.send(data(1, bytes(16_000)))
        assert stream.buffered > 0
        abort_on_close(far)
        far.close()
        raw.turn()
        assert [f.stream for f in raw.frames(frames.RST_STREAM)] == [1]
        assert raw.resets() == {1: frames.CONNECT_ERROR}
        assert conversation.ending is not None
        assert "application" in conversation.ending.error


def test_half_close_of_the_application_is_an_empty_last_frame() -> None:
    with Raw() as raw:
        raw.greet()
        raw.request()
        app = raw.side.applications[0]
        app.send(b"bye")
        app.shutdown(socket.SHUT_WR)
        raw.turn()
        assert [(f.flags, f.body) for f in raw.frames(frames.DATA)] == [(0, b"bye"), (END, b"")]
        raw.send(data(1, b"still open"))
        assert read_now(app) == b"still open"


def test_half_close_waits_for_bytes_that_the_application_has_not_read() -> None:
    with Raw() as raw:
        raw.greet()
        raw.request()
        app = raw.side.applications[0]
        body = bytes(range(250)) * 4000
        raw.send(b"".join(data(1, body[at : at + 10_000]) for at in range(0, len(body), 10_000)) + data(1, b"", END))
        got = bytearray()
        while len(got) < len(body):
            got += read_now(app)
            raw.turn()
        assert bytes(got) == body
        assert app.recv(1) == b""


def test_tiny_frames_for_a_slow_reader_cost_little_more_than_their_bytes() -> None:
    with Raw() as raw:
        raw.greet()
        raw.request()
        stream = raw.tunnel.streams[1]
        raw.send(data(1, bytes(1_000_000)) * 2)
        assert stream.buffered > 1_000_000
        before = stream.pieces
        raw.send(data(1, b"x") * 10_000)
        assert stream.pieces - before <= 2


def test_the_window_of_a_stream_is_what_its_application_has_not_read() -> None:
    window = 128 * 1024
    with Raw(settings=Settings(stream_window=window)) as raw:
        raw.greet()
        raw.request()
        stream = raw.tunnel.streams[1]
        for _ in range(20):
            raw.send(data(1, bytes(window // 2)))
            assert stream.buffered <= window
        assert raw.resets() == {1: frames.FLOW_CONTROL_ERROR}
        assert raw.goaway() is None


def test_no_more_is_sent_than_the_peer_allows() -> None:
    with Raw() as raw:
        raw.greet()
        raw.request()
        app = raw.side.applications[0]
        fill(app, 200_000)
        raw.turn(20)
        assert sum(len(f.body) for f in raw.frames(frames.DATA)) == 65_535
        raw.send(frames.window_update(1, 1000))
        assert sum(len(f.body) for f in raw.frames(frames.DATA)) == 65_535
        raw.send(frames.window_update(0, 500))
        assert sum(len(f.body) for f in raw.frames(frames.DATA)) == 66_035
        raw.send(frames.window_update(0, 10_000))
        assert sum(len(f.body) for f in raw.frames(frames.DATA)) == 66_535


def test_a_slow_reader_leaves_the_other_streams_of_its_tunnel_moving() -> None:
    with Raw(settings=Settings(stream_window=65_535, connection_window=131_072)) as raw:
        raw.greet()
        raw.request(1)
        raw.request(3)
        raw.send(data(1, bytes(65_535)))
        for _ in range(100):
            raw.send(data(3, bytes(10_000)))
            assert len(read_now(raw.side.applications[1])) == 10_000
        assert raw.goaway() is None
        assert raw.resets() == {}


def test_a_stream_reset_while_its_application_is_dialled_ends_when_it_is_accepted() -> None:
    with Raw(answer="") as raw:
        raw.greet()
        raw.request()
        stream = raw.tunnel.streams[1]
        raw.send(reset(1, frames.CANCEL))
        near, far = socket.socketpair()
        near.setblocking(False)
        stream.attach(near)
        conversation = Conversation()
        raw.tunnel.accept(stream, frames.RESPONSE_200, conversation)
        raw.turn()
        assert conversation.ending is not None
        assert "reset" in conversation.ending.error
        assert far.recv(1) == b""
        assert raw.frames(frames.HEADERS) == []
        far.close()


def test_a_frame_of_a_stream_that_was_reset_in_its_middle_is_skipped() -> None:
    with Raw() as raw:
        raw.greet()
        raw.request(1)
        raw.request(3)
        whole = data(1, bytes(1000))
        raw.send(whole[:500])
        raw.tunnel.streams[1].abort("enough")
        raw.send(whole[500:] + data(3, b"next"))
        assert read_now(raw.side.applications[1]) == b"next"
        assert raw.resets() == {1: frames.CANCEL}


def test_an_application_that_is_gone_is_not_watched_for_ever() -> None:
    """The kernel reports a hung-up socket on every turn: an idle loop must have nothing to do."""
    with Raw() as raw:
        raw.greet()
        raw.request()
        fill(raw.side.applications[0], 1_000_000)
        raw.turn(10)
        raw.side.applications[0].close()
        raw.turn(10)
        assert raw.loop.turn(0) == 0
