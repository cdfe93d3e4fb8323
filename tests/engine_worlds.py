"""Two worlds for differential tests: a Tunnel with its peer, and a pure h2 connection of the same role with its own.

Both have the same methods: `give` bytes from the peer, `settle` until nothing moves, what applications do (`open`,
`app_send`, `app_end`, `abort`), and what can be compared (`streams`, `windows`, `peer.sees`).
"""

from __future__ import annotations

import contextlib
import socket
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
from engine_pair import Conversation, Raw, parse_frames, read_now

from ztunnel.core.wire import frames
from ztunnel.worker.engine.h2 import MAX_HEADER_LIST, Settings

LIMITS = Settings(stream_window=65_535, connection_window=200_000, frame_size=16_384, max_streams=3)
CODES = h2.settings.SettingCodes
REQUEST = [(":method", "CONNECT"), (":authority", "10.0.0.2:80")]


def library(*, client: bool) -> Any:
    config = h2.config.H2Configuration(client_side=client, header_encoding=None)
    return h2.connection.H2Connection(config)


class Told:
    """What one side of a stream has learnt so far."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.status: bytes | None = None
        self.ended = False
        self.reset = False

    def __repr__(self) -> str:
        return f"status {self.status!r}, {len(self.received)} bytes, ended {self.ended}, reset {self.reset}"


class PeerSide:
    """The pure h2 connection at the other end, and what its streams were told."""

    def __init__(self, *, client: bool) -> None:
        self.connection = library(client=client)
        self.told: dict[int, Told] = {}
        self.gone = False
        self.connection.initiate_connection()

    def stream(self, number: int) -> Told:
        return self.told.setdefault(number, Told())

    def hear(self, data: bytes) -> None:
        """Raises h2's ProtocolError when what was sent to it breaks the protocol."""
        if data.startswith(frames.PREFACE):
            self.connection.receive_data(frames.PREFACE)
            data = data[len(frames.PREFACE) :]
        for frame in parse_frames(data):  # singly: h2 looks at a changed frame size only between calls
            self._hear(frames.frame(*frame))

    def _hear(self, frame: bytes) -> None:
        for event in self.connection.receive_data(frame):
            match event:
                case h2.events.RequestReceived():
                    self.stream(event.stream_id)
                case h2.events.ResponseReceived():
                    self.stream(event.stream_id).status = dict(event.headers)[b":status"]
                case h2.events.DataReceived():
                    self.stream(event.stream_id).received += event.data
                case h2.events.StreamEnded():
                    self.stream(event.stream_id).ended = True
                case h2.events.StreamReset(remote_reset=True):
                    self.stream(event.stream_id).reset = True
                case h2.events.ConnectionTerminated():
                    self.gone = True

    def sees(self) -> tuple[int, dict[int, int | None], dict[int, str]]:
        """Everything the peer knows, to be compared."""
        connection = self.connection
        windows = {}
        for number in self.told:
            try:
                windows[number] = connection.local_flow_control_window(number)
            except h2.exceptions.ProtocolError:
                windows[number] = None
        return connection.outbound_flow_control_window, windows, {n: repr(told) for n, told in self.told.items()}


class EngineWorld:
    """A Tunnel, applications at sockets, and its peer."""

    def __init__(self, *, client: bool) -> None:
        self.raw = Raw(client=client, settings=LIMITS)
        self.peer = PeerSide(client=not client)
        self.client = client
        self.heard = 0
        self.apps: dict[int, socket.socket] = {}
        self.talks: dict[int, Conversation] = {}
        self.received: dict[int, bytearray] = {}
        self.unsent: dict[int, int] = {}
        self.ending: set[int] = set()
        self.ended: set[int] = set()

    def close(self) -> None:
        self.raw.__exit__()

    def settle(self) -> None:
        """Let everything that can move move."""
        moved = 1
        while moved:
            moved = self.raw.loop.turn(0)
            self.raw.collect()
            for number, app in self.apps.items():
                data = self._read(app)
                moved += len(data) + self._speak(number, app)
                self.received.setdefault(number, bytearray()).extend(data)
        # Requests are answered in order, so the n-th application is that of the n-th accepted stream.
        if not self.client:
            for number, app, talk in zip(
                self._accepted(), self.raw.side.applications, self.raw.side.conversations, strict=True
            ):
                if number not in self.apps:
                    self.apps[number], self.talks[number] = app, talk
                    self.received[number] = bytearray(self._read(app))
        said = bytes(self.raw.received[self.heard :])
        self.heard = len(self.raw.received)
        if said:
            self.peer.hear(said)

    def _speak(self, number: int, app: socket.socket) -> int:
        """What the application still has to say, as far as its socket takes it; 0 when nothing was."""
        sent = 0
        with contextlib.suppress(OSError):
            if left := self.unsent.get(number, 0):
                sent = app.send(bytes(left))
                self.unsent[number] = left - sent
            if number in self.ending - self.ended and not self.unsent.get(number):
                app.shutdown(socket.SHUT_WR)
                self.ended.add(number)
                sent += 1
        return sent

    @staticmethod
    def _read(app: socket.socket) -> bytes:
        try:
            return read_now(app)
        except OSError:
            return b""

    def _accepted(self) -> list[int]:
        answered = parse_frames(bytes(self.raw.received))
        return [frame.stream for frame in answered if frame.kind == frames.HEADERS]

    def give(self, data: bytes, chunk: int) -> None:
        self.raw.send(data, max(chunk, len(data) // 300))

    def open(self) -> int | None:
        if self.raw.tunnel.free_slots <= 0:
            return None
        app, stream, talk = self.raw.open()
        self.apps[stream.id], self.talks[stream.id] = app, talk
        return stream.id

    def app_send(self, number: int, size: int) -> None:
        if number not in self.ending:
            self.unsent[number] = self.unsent.get(number, 0) + size

    def app_end(self, number: int) -> None:
        self.ending.add(number)

    def abort(self, number: int) -> None:
        stream = self.raw.tunnel.streams.get(number)
        if stream is not None:
            stream.abort("enough")

    def state(self, number: int) -> str:
        ending = self.talks[number].ending
        return "open" if ending is None else "finished" if ending.ok else "reset"

    def streams(self) -> dict[int, tuple[str, bytes]]:
        return {number: (self.state(number), bytes(self.received.get(number, b""))) for number in self.talks}

    def windows(self) -> dict[int, int]:
        tunnel = self.raw.tunnel
        return {stream.id: min(tunnel.window, stream.window) for stream in tunnel.streams.values() if stream.answered}


class LibraryWorld:
    """A pure h2 connection, applications that are always ready, and its peer."""

    def __init__(self, *, client: bool) -> None:
        self.client = client
        self.peer = PeerSide(client=not client)
        self.connection = library(client=client)
        values = {
            CODES.INITIAL_WINDOW_SIZE: LIMITS.stream_window,
            CODES.MAX_FRAME_SIZE: LIMITS.frame_size,
            CODES.MAX_HEADER_LIST_SIZE: MAX_HEADER_LIST,
        }
        if client:
            values[CODES.ENABLE_PUSH] = 0
        else:
            values[CODES.MAX_CONCURRENT_STREAMS] = LIMITS.max_streams
        self.connection.local_settings = h2.settings.Settings(client=client, initial_values=values)
        self.connection.initiate_connection()
        self.connection.increment_flow_control_window(LIMITS.connection_window - frames.DEFAULT_WINDOW)
        self.apps: dict[int, Application] = {}
        self.uncredited = 0

    def close(self) -> None:
        return

    def settle(self) -> None:
        for number, app in self.apps.items():
            app.pump(self.connection, number)
        data = self.connection.data_to_send()
        if data:
            self.peer.hear(data)

    def give(self, data: bytes, chunk: int) -> None:
        for event in self.connection.receive_data(data):
            number = getattr(event, "stream_id", None)
            app = self.apps.get(number) if number is not None else None
            match event:
                case h2.events.RequestReceived():
                    self.connection.send_headers(number, [(":status", "200")])
                    self.apps[number] = Application(answered=True)
                case h2.events.ResponseReceived() if app is not None:
                    self._answered(number, app, dict(event.headers)[b":status"], event.stream_ended is not None)
                case h2.events.DataReceived():
                    self._data(number, event.data, event.flow_controlled_length)
                case h2.events.StreamEnded() if app is not None:
                    app.remote_ended = True
                case h2.events.StreamReset() if app is not None:
                    # RFC 9113 section 8.1: a peer that has said everything may stop listening without an error.
                    done = app.remote_ended and event.error_code == frames.NO_ERROR
                    app.over = app.over or ("finished" if done else "reset")
        for each_number, each in self.apps.items():
            each.pump(self.connection, each_number)

    def _answered(self, number: int, app: Application, status: bytes, ends: bool) -> None:
        if status >= b"300":
            app.over = "reset"
            if ends:
                self.connection.end_stream(number)
            else:
                self.connection.reset_stream(number, frames.CANCEL)
        else:
            app.answered = True

    def _data(self, number: int, data: bytes, length: int) -> None:
        """Credit as the tunnel gives it: the connection's on arrival, a stream's in quarters when it is consumed."""
        self.uncredited += length
        if self.uncredited >= LIMITS.connection_window // 4:
            self.connection.increment_flow_control_window(self.uncredited)
            self.uncredited = 0
        app = self.apps.get(number)
        if app is None or app.over:
            return
        app.received += data
        app.uncredited += length
        if app.uncredited >= LIMITS.stream_window // 4:
            with contextlib.suppress(h2.exceptions.StreamClosedError):  # its last frame was part of the same read
                self.connection.increment_flow_control_window(app.uncredited, number)
            app.uncredited = 0

    def open(self) -> int | None:
        connection = self.connection
        if connection.open_outbound_streams >= connection.remote_settings.max_concurrent_streams:
            return None
        number = connection.get_next_available_stream_id()
        connection.send_headers(number, REQUEST)
        self.apps[number] = Application(answered=False)
        return int(number)

    def app_send(self, number: int, size: int) -> None:
        app = self.apps[number]
        if not app.over and not app.ends:
            app.pending += size

    def app_end(self, number: int) -> None:
        self.apps[number].ends = True

    def abort(self, number: int) -> None:
        app = self.apps[number]
        if not app.over:
            app.over = "reset"
            self.connection.reset_stream(number, frames.CANCEL)

    def streams(self) -> dict[int, tuple[str, bytes]]:
        return {number: (app.over or "open", bytes(app.received)) for number, app in self.apps.items()}

    def windows(self) -> dict[int, int]:
        connection = self.connection
        return {
            number: min(
                connection.outbound_flow_control_window,
                connection.streams[number].outbound_flow_control_window,
            )
            for number, app in self.apps.items()
            if app.answered and not app.over
        }


class Application:
    """Sends when there is a window, reads at once."""

    def __init__(self, *, answered: bool) -> None:
        self.answered = answered
        self.received = bytearray()
        self.pending = 0
        self.uncredited = 0
        self.ends = self.end_sent = self.remote_ended = False
        self.over = ""

    def pump(self, connection: Any, number: int) -> None:
        while self.pending and self.answered and not self.over and not self.end_sent:
            size = min(self.pending, connection.local_flow_control_window(number), connection.max_outbound_frame_size)
            if size <= 0:
                return
            connection.send_data(number, bytes(size))
            self.pending -= size
        if self.ends and self.answered and not self.over and not self.end_sent:
            connection.end_stream(number)
            self.end_sent = True
        if self.end_sent and self.remote_ended and not self.over:
            self.over = "finished"
