"""Two tunnels of one loop talking over a socket pair, with applications at both ends: the engine without a network.

with Pair() as pair:
    app, stream = pair.connect()        an application's socket in front of the client tunnel
    served = pair.accepted()            the socket that the server's side would be an application of
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple

from mesh_pki import CLIENT, WEB, MeshPki

from ztunnel.core.wire import frames
from ztunnel.worker.engine.ending import Ending
from ztunnel.worker.engine.h2 import Settings, Tunnel
from ztunnel.worker.engine.loop import Loop
from ztunnel.worker.engine.scratch import Scratch
from ztunnel.worker.engine.stream import Stream
from ztunnel.worker.engine.tls import Context

CONNECT = frames.encode_headers([(":method", "CONNECT"), (":authority", "10.0.0.2:80")])
DEFAULT = Settings()
Headers = list[tuple[bytes, bytes]]


def socket_pair() -> tuple[socket.socket, socket.socket]:
    near, far = socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    return near, far


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection over loopback, where resets are what they are on a network."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.socket()
        near.connect(listener.getsockname())
        far, _ = listener.accept()
    near.setblocking(False)
    far.setblocking(False)
    return near, far


class Side:
    """A tunnel's owner that writes down what it is told; accepts every request unless told otherwise."""

    def __init__(self, answer: str = "200") -> None:
        self.answer = answer
        self.is_ready = False
        self.ending: Ending | None = None
        self.requests: list[Headers] = []
        self.applications: list[socket.socket] = []
        self.conversations: list[Conversation] = []

    def secured(self, tunnel: Tunnel) -> None:
        pass

    def ready(self, tunnel: Tunnel) -> None:
        self.is_ready = True

    def requested(self, stream: Stream, headers: Headers) -> None:
        self.requests.append(headers)
        if self.answer == "":
            return
        if self.answer != "200":
            stream.tunnel.refuse(stream, frames.encode_header(":status", self.answer))
            return
        near, far = socket_pair()
        conversation = Conversation()
        self.conversations.append(conversation)
        self.applications.append(far)
        stream.attach(near)
        stream.tunnel.accept(stream, frames.RESPONSE_200, conversation)

    def changed(self, tunnel: Tunnel) -> None:
        pass

    def closed(self, tunnel: Tunnel, ending: Ending) -> None:
        self.ending = ending


class Conversation:
    """A stream's owner that writes down what it is told."""

    def __init__(self) -> None:
        self.headers: Headers | None = None
        self.status: int | None = None
        self.ending: Ending | None = None

    def opened(self, headers: Headers) -> None:
        self.headers = headers

    def refused(self, status: int) -> None:
        self.status = status

    def returned(self, sock: socket.socket, ending: Ending) -> None:
        sock.close()
        self.ended(ending)

    def ended(self, ending: Ending) -> None:
        assert self.ending is None, "an ending is told once"
        self.ending = ending


def open_stream(tunnel: Tunnel) -> tuple[socket.socket, Stream, Conversation]:
    """An application's connection, opened as a stream of a client tunnel."""
    app, inner = socket_pair()
    conversation = Conversation()
    stream = tunnel.open_stream(CONNECT, conversation)
    stream.attach(inner)
    return app, stream, conversation


class Pair:
    def __init__(
        self,
        *,
        answer: str = "200",
        client: Settings = DEFAULT,
        server: Settings = DEFAULT,
    ) -> None:
        mesh = MeshPki()
        self.loop = Loop()
        self.client_side, self.server_side = Side(), Side(answer)
        near, far = socket_pair()
        accept_all = lambda names: None  # noqa: E731
        server_context = Context(mesh.leaf(WEB), server=True)
        client_context = Context(mesh.leaf(CLIENT), server=False)
        self.server = Tunnel(
            self.loop,
            far,
            server_context.session(self.loop.scratch, accept_all),
            self.server_side,
            server,
            client=False,
        )
        self.client = Tunnel(
            self.loop,
            near,
            client_context.session(self.loop.scratch, accept_all),
            self.client_side,
            client,
            client=True,
        )
        self._applications: list[socket.socket] = []
        self.run_until(lambda: self.client_side.is_ready and self.server_side.is_ready)

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for tunnel in (self.client, self.server):
            tunnel.close(Ending("the test is over"))
        self.loop.shutdown()
        for sock in (*self._applications, *self.server_side.applications):
            sock.close()

    def connect(self) -> tuple[socket.socket, Stream, Conversation]:
        """An application's connection, opened as a stream; what its owner hears is in the Conversation."""
        opened = open_stream(self.client)
        self._applications.append(opened[0])
        return opened

    def accepted(self) -> tuple[socket.socket, Conversation]:
        """The server side's latest application and its owner; waits for it."""
        count = len(self.server_side.applications)
        self.run_until(lambda: len(self.server_side.applications) > 0 and bool(self.server_side.conversations))
        assert count <= len(self.server_side.applications)
        return self.server_side.applications[-1], self.server_side.conversations[-1]

    def turn(self, times: int = 20) -> None:
        for _ in range(times):
            self.loop.turn(0)

    def run_until(self, condition: Callable[[], object], seconds: float = 10.0) -> None:
        """Take turns until the condition holds; the limit only ends a test that has failed."""
        limit = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < limit, "the condition did not come true"
            self.loop.turn(0.05)

    def read(self, sock: socket.socket, size: int) -> bytes:
        """Exactly `size` bytes from an application's socket, taking turns meanwhile."""
        got = bytearray()

        def more() -> bool:
            with contextlib.suppress(BlockingIOError):
                got.extend(sock.recv(size - len(got)))
            return len(got) >= size

        self.run_until(more)
        return bytes(got)

    def read_end(self, sock: socket.socket) -> bytes:
        """What is left until FIN; raises ConnectionResetError when it is a reset."""
        got = bytearray()
        ended: list[bool] = []

        def end() -> bool:
            try:
                data = sock.recv(65536)
            except BlockingIOError:
                return False
            if not data:
                ended.append(True)
            got.extend(data)
            return bool(ended)

        self.run_until(end)
        return bytes(got)


class PlainSession:
    """In place of `tls.Session`: bytes in the clear, after a handshake that is one byte from the peer."""

    def __init__(self, scratch: Scratch) -> None:
        self._scratch = scratch
        self.established = False
        self.closed = False
        self.peer_names: tuple[str, ...] = ()

    def trim(self) -> None:
        pass

    def start(self) -> int:
        return 0

    def shake_hands(self, size: int) -> int:
        self.established = True
        self._scratch.plain[: size - 1] = self._scratch.cipher_view[1:size]
        return size - 1

    def read(self, size: int, start: int) -> int:
        self._scratch.plain[start : start + size] = self._scratch.cipher_view[:size]
        return start + size

    def take_output(self) -> int:
        return 0

    def seal(self, size: int) -> int:
        self._scratch.sealed[:size] = self._scratch.clear_view[:size]
        return size

    def close_notify(self) -> int:
        return 0


INITIAL_WINDOW, MAX_FRAME, MAX_STREAMS = 4, 5, 3


def setting(code: int, value: int) -> bytes:
    """One entry of a SETTINGS frame."""
    return code.to_bytes(2, "big") + value.to_bytes(4, "big")


class Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    body: bytes


def parse_frames(data: bytes) -> list[Frame]:
    """The complete frames in `data`."""
    found, at = [], 0
    while len(data) - at >= frames.HEADER_SIZE:
        high, low, kind, flags, stream = frames.unpack_header(data, at)
        end = at + frames.HEADER_SIZE + (high << 8 | low)
        if end > len(data):
            break
        found.append(Frame(kind, flags, stream, data[at + frames.HEADER_SIZE : end]))
        at = end
    return found


class Raw:
    """A tunnel whose peer is the test itself, frame by frame and in the clear."""

    def __init__(
        self, *, client: bool = False, answer: str = "200", settings: Settings = DEFAULT, loop: Loop | None = None
    ) -> None:
        self._own_loop = loop is None
        self.loop = loop or Loop()
        self.side = Side(answer)
        inner, self.sock = socket_pair()
        session: Any = PlainSession(self.loop.scratch)
        self.tunnel = Tunnel(self.loop, inner, session, self.side, settings, client=client)
        self.received = bytearray()
        """Everything the tunnel sent."""
        self.ended = False
        """The tunnel closed its socket."""
        self._applications: list[socket.socket] = []
        self.sock.send(b"\0")

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.tunnel.close(Ending("the test is over"))
        self.loop.turn(0)
        if self._own_loop:
            self.loop.shutdown()
        for sock in (self.sock, *self._applications, *self.side.applications):
            sock.close()

    def greet(self, settings: bytes = b"") -> None:
        """What every peer says first; `settings` is the body of SETTINGS."""
        preface = b"" if self.tunnel.client else frames.PREFACE
        self.send(preface + frames.frame(frames.SETTINGS, 0, 0, settings))
        assert self.side.is_ready

    def send(self, data: bytes, chunk: int = 1 << 20) -> None:
        """Bytes to the tunnel, in pieces, each handled before the next. Stops when the tunnel has closed."""
        view = memoryview(data)
        while view and not self.ended:
            try:
                view = view[self.sock.send(view[:chunk]) :]
            except BlockingIOError:
                pass
            except OSError:
                self.ended = True
            self.loop.turn(0)
            self.collect()
        self.turn()

    def turn(self, times: int = 4) -> None:
        for _ in range(times):
            self.loop.turn(0)
            self.collect()

    def collect(self) -> None:
        while not self.ended:
            try:
                data = self.sock.recv(1 << 20)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            self.ended = not data
            self.received += data

    def frames(self, kind: int | None = None) -> list[Frame]:
        """What the tunnel has sent so far."""
        data = bytes(self.received)
        if self.tunnel.client:
            data = data[len(frames.PREFACE) :]
        return [frame for frame in parse_frames(data) if kind is None or frame.kind == kind]

    def goaway(self) -> int | None:
        """The code of the tunnel's last GOAWAY."""
        found = self.frames(frames.GOAWAY)
        return int.from_bytes(found[-1].body[4:8], "big") if found else None

    def resets(self) -> dict[int, int]:
        """Codes of RST_STREAM by stream."""
        return {frame.stream: int.from_bytes(frame.body, "big") for frame in self.frames(frames.RST_STREAM)}

    def request(self, stream: int = 1, flags: int = 0, block: bytes = CONNECT) -> None:
        self.send(frames.frame(frames.HEADERS, frames.END_HEADERS | flags, stream, block))

    def open(self) -> tuple[socket.socket, Stream, Conversation]:
        """An application's connection through a client tunnel."""
        opened = open_stream(self.tunnel)
        self._applications.append(opened[0])
        self.turn()
        return opened


def read_now(sock: socket.socket) -> bytes:
    """What lies in a socket at the moment."""
    got = bytearray()
    while True:
        try:
            data = sock.recv(1 << 20)
        except BlockingIOError:
            return bytes(got)
        if not data:
            return bytes(got)
        got += data


def fill(sock: socket.socket, limit: int = 1 << 24) -> int:
    """Send until the socket takes no more; how much it took."""
    sent = 0
    while sent < limit:
        try:
            sent += sock.send(bytes(min(65536, limit - sent)))
        except BlockingIOError:
            break
    return sent
