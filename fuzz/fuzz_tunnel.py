"""Any bytes from a peer: a tunnel goes on, or it closes with one ending; no exception escapes, nothing is left.

python fuzz/fuzz_tunnel.py [libFuzzer options] [corpus directory]      needs the package atheris

The first byte of an input says which role the tunnel has and how the rest is cut; the rest is what the peer sends,
in the clear: raw bytes, or (by that byte) frames made of them, which gets deeper.
"""

from __future__ import annotations

import logging
import socket
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1] / "tests")]

from engine_pair import Raw, read_now

from ztunnel.core.wire import frames
from ztunnel.worker.engine.h2 import Settings

CLIENT, FRAMED, BY_BYTE, GREETED = 1, 2, 4, 8
SMALL = Settings(stream_window=65_535, connection_window=131_072, frame_size=16_384, max_streams=4)


class _Crash(logging.Handler):
    """The loop survives a handler's exception and logs it; here it is a finding."""

    def emit(self, record: logging.LogRecord) -> None:
        raise AssertionError(record.getMessage()) from (record.exc_info[1] if record.exc_info else None)


def as_frames(data: bytes) -> bytes:
    """Bytes to well-formed frames: type and stream from two of them, flags, a length, then that much body."""
    out = bytearray()
    at = 0
    while at + 3 < len(data):
        kind, flags, size = data[at] % 11, data[at + 1], data[at + 2] % 64
        stream = (data[at] >> 4) % 8
        out += frames.frame(kind, flags, stream, data[at + 3 : at + 3 + size])
        at += 3 + size
    return bytes(out)


def fuzz_one_input(data: bytes) -> None:
    if not data:
        return
    mode, body = data[0], data[1:]
    if mode & FRAMED:
        body = as_frames(body)
    findings = _Crash()
    logger = logging.getLogger("ztunnel.worker.engine")
    logger.addHandler(findings)
    raise_errors, logging.raiseExceptions = logging.raiseExceptions, False
    try:
        play(body, client=bool(mode & CLIENT), greeted=bool(mode & GREETED), chunk=1 if mode & BY_BYTE else 1 << 20)
    finally:
        logging.raiseExceptions = raise_errors
        logger.removeHandler(findings)


def play(body: bytes, *, client: bool, greeted: bool, chunk: int) -> None:
    with Raw(client=client, settings=SMALL) as raw:
        if greeted:
            raw.greet()
            _begin(raw)
        raw.send(body, chunk)
        for app in raw.side.applications:
            _use(app)
        raw.turn()
        tunnel = raw.tunnel
        assert tunnel.closed == (raw.side.ending is not None)
        if tunnel.closed:
            assert raw.side.ending is not None
            assert raw.side.ending.error
            assert not tunnel.streams
            assert all(each.ending is not None for each in raw.side.conversations)
        else:
            assert tunnel.window <= frames.MAX_WINDOW
            assert len(tunnel.streams) <= SMALL.max_streams
            assert all(stream.buffered <= SMALL.stream_window for stream in tunnel.streams.values())
            assert len(tunnel._carry) <= 16_384 + frames.HEADER_SIZE


def _begin(raw: Raw) -> None:
    """Two streams, so that there is something to break."""
    for number in (1, 3):
        if raw.tunnel.client:
            raw.open()
        else:
            raw.request(number)


def _use(app: socket.socket) -> None:
    try:
        read_now(app)
        app.send(b"application")
    except OSError:
        return


def main() -> None:
    import atheris

    atheris.Setup(sys.argv, fuzz_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
