"""Two tunnels of one loop talking over a socket pair, with applications at both ends: the engine without a network.

with Pair() as pair:
    app, stream = pair.connect()        an application's socket in front of the client tunnel
    served = pair.accepted()            the socket that the server's side would be an application of
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from types import TracebackType

from mesh_pki import CLIENT, WEB, MeshPki

from ztunnel.core.wire import frames
from ztunnel.worker.engine.ending import Ending
from ztunnel.worker.engine.h2 import Settings, Tunnel
from ztunnel.worker.engine.loop import Loop
from ztunnel.worker.engine.stream import Stream
from ztunnel.worker.engine.tls import Context

CONNECT = frames.encode_headers([(":method", "CONNECT"), (":authority", "10.0.0.2:80")])
Headers = list[tuple[bytes, bytes]]


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
        near, far = socket.socketpair()
        near.setblocking(False)
        far.setblocking(False)
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

    def ended(self, ending: Ending) -> None:
        assert self.ending is None, "an ending is told once"
        self.ending = ending


class Pair:
    def __init__(
        self,
        *,
        answer: str = "200",
        client: Settings = Settings(),
        server: Settings = Settings(),
    ) -> None:
        mesh = MeshPki()
        self.loop = Loop()
        self.client_side, self.server_side = Side(), Side(answer)
        near, far = socket.socketpair()
        near.setblocking(False)
        far.setblocking(False)
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
        app, inner = socket.socketpair()
        app.setblocking(False)
        inner.setblocking(False)
        self._applications.append(app)
        conversation = Conversation()
        stream = self.client.open_stream(CONNECT, conversation)
        stream.attach(inner)
        return app, stream, conversation

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
            try:
                got.extend(sock.recv(size - len(got)))
            except BlockingIOError:
                pass
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
