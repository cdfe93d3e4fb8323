"""The same conversation played to a Tunnel and to a pure h2 connection of the same role gives the same events.

The peer is a pure h2 connection too, one for each world, and both peers do the same things; so a peer that sees a
difference (a window, a frame out of place, an event) says or does something else, and that is compared after every
step. What the peer sends is mangled alike for both: HEADERS are cut into CONTINUATIONs, padded, given a priority.
The tunnel gets it in chunks, down to single bytes; the library gets it whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import h2.exceptions
from engine_pair import parse_frames
from engine_worlds import CODES, LIMITS, REQUEST, EngineWorld, LibraryWorld
from hypothesis import given, settings
from hypothesis import strategies as st

from ztunnel.core.wire import frames

STREAMS = 4
"""Streams that a script speaks of at most."""


# ---- what the peers say is mangled alike ----


def mangle(data: bytes, cut: int, padding: int, priority: bool) -> bytes:
    """HEADERS cut into pieces of `cut` bytes, padded, and with a priority."""
    start = len(frames.PREFACE) if data.startswith(frames.PREFACE) else 0
    out = bytearray(data[:start])
    for frame in parse_frames(data[start:]):
        if frame.kind != frames.HEADERS or frame.flags & (frames.PADDED | frames.PRIORITY_FLAG):
            out += frames.frame(*frame)
            continue
        pieces = [frame.body[at : at + cut] for at in range(0, len(frame.body), cut)] or [b""]
        flags, body = frame.flags & ~frames.END_HEADERS, pieces[0]
        if priority:
            flags, body = flags | frames.PRIORITY_FLAG, b"\0\0\0\0\x10" + body
        if padding:
            flags, body = flags | frames.PADDED, bytes([padding]) + body + bytes(padding)
        if len(pieces) == 1:
            flags |= frames.END_HEADERS
        out += frames.frame(frames.HEADERS, flags, frame.stream, body)
        for index, piece in enumerate(pieces[1:], 2):
            last = frames.END_HEADERS if index == len(pieces) else 0
            out += frames.frame(frames.CONTINUATION, last, frame.stream, piece)
    return bytes(out)


# ---- the script ----

Step = tuple[Any, ...]


class Play:
    """Both worlds, step by step."""

    def __init__(self, *, client: bool) -> None:
        self.client = client
        self.engine = EngineWorld(client=client)
        self.library = LibraryWorld(client=client)
        self.worlds = (self.engine, self.library)
        self.opened: list[int] = []
        self.shrunk = False
        self.broken_off = False
        """A stream was aborted by us: frames on their way to it are counted differently from then on."""

    def close(self) -> None:
        for world in self.worlds:
            world.close()

    def exchange(self, chunk: int = 1 << 20, mangled: tuple[int, int, bool] = (9, 0, False)) -> None:
        """Carry what the peers have to say, and what is answered, until all is said; compare."""
        for _ in range(10):
            for world in self.worlds:
                world.settle()
            said = [world.peer.connection.data_to_send() for world in self.worlds]
            assert said[0] == said[1], "the peers say different things"
            if not said[0]:
                break
            for world in self.worlds:
                world.give(mangle(said[0], *mangled), chunk)
        self.compare()

    def compare(self) -> None:
        engine, library = self.engine, self.library
        assert not engine.raw.tunnel.closed
        ours, theirs = engine.streams(), library.streams()
        assert {n: state for n, (state, _) in ours.items()} == {n: state for n, (state, _) in theirs.items()}
        for number, (state, received) in ours.items():
            if state == "reset":
                assert received.startswith(theirs[number][1]) or theirs[number][1].startswith(received)
            else:
                assert received == theirs[number][1]
        assert engine.windows() == library.windows()
        if not self.broken_off:
            (window, windows, told), (other, others, said) = engine.peer.sees(), library.peer.sees()
            assert (window, told) == (other, said)
            assert windows.keys() == others.keys()
            for number, left in windows.items():
                # A stream's credit is given in quarters, and a quarter may be full in the middle of a frame.
                assert abs((left or 0) - (others[number] or 0)) < LIMITS.stream_window // 4

    def both(self, call: Callable[[Any], object]) -> object:
        """The same for both; both succeed alike or are refused alike."""
        results = []
        for world in self.worlds:
            try:
                results.append(call(world))
            except (h2.exceptions.ProtocolError, KeyError) as error:  # KeyError: a stream that h2 has forgotten
                results.append(type(error).__name__)
        assert results[0] == results[1]
        return results[0]

    def step(self, step: Step) -> None:
        what, chunk, mangled, *rest = step
        getattr(self, what)(*rest)
        self.exchange(chunk, mangled)

    # ---- steps; `which` is an index into the streams that were opened ----

    def _number(self, which: int) -> int | None:
        return self.opened[which % len(self.opened)] if self.opened else None

    def open(self, ends: bool, extra: list[tuple[str, str]]) -> None:
        if len(self.opened) >= STREAMS - 1:
            return
        if self.client:
            number = self.both(lambda world: world.open())
        else:
            number = self.opened[-1] + 2 if self.opened else 1
            self.both(lambda world: world.peer.connection.send_headers(number, REQUEST + extra, end_stream=ends))
            for world in self.worlds:
                world.peer.stream(number)
        if isinstance(number, int):
            self.opened.append(number)

    def answer(self, which: int, status: str, ends: bool) -> None:
        number = self._number(which)
        if self.client and number is not None:
            headers = [(":status", status)]
            self.both(lambda world: world.peer.connection.send_headers(number, headers, end_stream=ends))

    def data(self, which: int, size: int, padding: int, ends: bool) -> None:
        number = self._number(which)
        if number is None or (self.client and not self._answered(number)):
            return

        room = size + padding + 1
        for world in self.worlds:
            with contextlib.suppress(h2.exceptions.ProtocolError):
                connection = world.peer.connection
                room = min(room, connection.local_flow_control_window(number), connection.max_outbound_frame_size)
        body, pad = bytes(max(0, room - padding - 1)), padding or None
        self.both(lambda world: world.peer.connection.send_data(number, body, end_stream=ends, pad_length=pad))

    def _answered(self, number: int) -> bool:
        return self.library.apps[number].answered

    def end(self, which: int) -> None:
        number = self._number(which)
        if number is not None and (not self.client or self._answered(number)):
            self.both(lambda world: world.peer.connection.end_stream(number))

    def reset(self, which: int, code: int) -> None:
        number = self._number(which)
        if number is not None:
            self.both(lambda world: world.peer.connection.reset_stream(number, code))

    def window(self, which: int | None, increment: int) -> None:
        number = None if which is None else self._number(which)
        if which is None or number is not None:
            self.both(lambda world: world.peer.connection.increment_flow_control_window(increment, number))

    def change(self, initial_window: int, frame_size: int, table: int) -> None:
        values = {CODES.INITIAL_WINDOW_SIZE: initial_window, CODES.MAX_FRAME_SIZE: frame_size}
        if table < frames.DEFAULT_HEADER_TABLE and not self.shrunk:  # hpack's encoder is wrong from the second on
            values[CODES.HEADER_TABLE_SIZE] = table
            self.shrunk = True
        self.both(lambda world: world.peer.connection.update_settings(values))

    def ping(self, opaque: bytes) -> None:
        self.both(lambda world: world.peer.connection.ping(opaque))

    def app_send(self, which: int, size: int) -> None:
        """Only the first stream, so that it is always the same one that uses up the connection's window."""
        number = self._number(0)
        if number is not None:
            for world in self.worlds:
                world.app_send(number, size)

    def app_end(self, which: int) -> None:
        number = self._number(which)
        if number is not None:
            for world in self.worlds:
                world.app_end(number)

    def abort(self, which: int) -> None:
        number = self._number(which)
        if number is not None:
            for world in self.worlds:
                world.abort(number)

    def abort_in_the_middle(self, which: int, size: int, at: int) -> None:
        """Our side gives up a stream while a DATA frame of it is half read."""
        number = self._number(which)
        if number is None or (self.client and not self._answered(number)):
            return
        sent = self.both(lambda world: world.peer.connection.send_data(number, bytes(size)))
        if sent is not None:
            return
        self.broken_off = True
        said = [world.peer.connection.data_to_send() for world in self.worlds]
        assert said[0] == said[1]
        cut = at % (len(said[0]) + 1)
        self.engine.give(said[0][:cut], 1 << 20)
        self.engine.abort(number)
        self.engine.give(said[0][cut:], 1 << 20)
        self.library.abort(number)
        self.library.give(said[0], 1 << 20)


which = st.integers(0, STREAMS - 1)
chunks = st.sampled_from([1 << 20, 1 << 20, 1000, 17, 3, 1])
mangling = st.tuples(st.integers(4, 60), st.sampled_from([0, 0, 1, 200]), st.booleans())
extra = st.lists(
    st.tuples(
        st.sampled_from(["baggage", "forwarded", "x"]),
        st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=150),
    ),
    max_size=2,
)
sizes = st.sampled_from([0, 1, 9, 1000, 16_000])


def say(name: str, *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Step]:
    return st.tuples(st.just(name), chunks, mangling, *arguments)


COMMON = [
    say("open", st.booleans(), extra),
    say("open", st.just(False), extra),
    say("data", which, sizes, st.sampled_from([0, 0, 5, 255]), st.booleans()),
    say("data", which, st.just(16_000), st.just(0), st.just(False)),
    say("end", which),
    say("reset", which, st.sampled_from([frames.NO_ERROR, frames.CANCEL, frames.INTERNAL_ERROR])),
    say("window", st.none() | which, st.sampled_from([1, 500, 20_000, 1 << 20])),
    say(
        "change",
        st.sampled_from([0, 100, 65_535, 1 << 20]),
        st.sampled_from([16_384, 30_000]),
        st.sampled_from([0, 4096]),
    ),
    say("ping", st.binary(min_size=8, max_size=8)),
    say("app_send", which, st.sampled_from([1, 800, 30_000, 90_000])),
    say("app_end", which),
    say("abort_in_the_middle", which, st.sampled_from([1, 500, 10_000]), st.integers(0, 10_009)),
]
SERVER = st.lists(st.one_of(COMMON), max_size=25)
CLIENT = st.lists(
    st.one_of(
        *COMMON,
        say("answer", which, st.sampled_from(["200", "200", "200", "103", "403", "503"]), st.booleans()),
        say("answer", which, st.just("200"), st.just(False)),
    ),
    max_size=25,
)
deterministic = settings(derandomize=True, deadline=None, max_examples=100)


def play(steps: list[Step], *, client: bool) -> None:
    stage = Play(client=client)
    try:
        stage.exchange()
        for step in steps:
            stage.step(step)
    finally:
        stage.close()


@deterministic
@given(SERVER)
def test_a_server_tunnel_is_like_h2(steps: list[Step]) -> None:
    play(steps, client=False)


@deterministic
@given(CLIENT)
def test_a_client_tunnel_is_like_h2(steps: list[Step]) -> None:
    play(steps, client=True)
