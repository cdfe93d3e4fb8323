"""Applications that prove a connection by what they said and heard: hashes of random pieces, ends and resets.

A server speaks first; then the client says what the conversation is to be (`Plan`), so that one server holds many
conversations of different kinds at once. Both keep what they said and heard under the plan's number.
"""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import trio
from netns_builder import Pod

from ztunnel.linux.sockets import listen_tcp
from ztunnel.worker.engine.tcp import abort_on_close

BANNER = b"HELO"
PIECES = (1, 100, 4096, 65_536, 400_000)
READ = 262_144
BOTH, CLIENT_FIRST, SERVER_FIRST, HOLD = range(4)
"""Who speaks first and ends before the other begins; HOLD: the server neither reads nor speaks until it is released."""

_BLOCK = random.Random(1).randbytes(1 << 20)
_HEADER = struct.Struct("!IIIB")


class Plan(NamedTuple):
    number: int
    up: int
    down: int
    order: int = BOTH


class Heard(NamedTuple):
    size: int
    hash: str


def text(number: int, size: int) -> Heard:
    """What is said under this number when nothing cuts it short."""
    said = hashlib.sha256()
    for piece in _pieces(number, size):
        said.update(piece)
    return Heard(size, said.hexdigest())


def _pieces(number: int, size: int) -> Iterator[memoryview]:
    rng = random.Random(number)
    while size:
        start = rng.randrange(1 << 19)
        length = min(size, rng.choice(PIECES))
        yield memoryview(_BLOCK)[start : start + length]
        size -= length


async def say(sock: trio.socket.SocketType, number: int, size: int) -> None:
    for piece in _pieces(number, size):
        left = piece
        while left:
            left = left[await sock.send(left) :]


async def say_and_end(sock: trio.socket.SocketType, number: int, size: int) -> None:
    await say(sock, number, size)
    sock.shutdown(trio.socket.SHUT_WR)


async def hear(sock: trio.socket.SocketType) -> Heard:
    """Everything until the other side ends; raises ConnectionResetError."""
    heard = hashlib.sha256()
    size = 0
    while piece := await sock.recv(READ):
        heard.update(piece)
        size += len(piece)
    return Heard(size, heard.hexdigest())


async def exactly(sock: trio.socket.SocketType, size: int) -> bytes:
    got = b""
    while len(got) < size:
        piece = await sock.recv(size - len(got))
        assert piece, "the connection ended early"
        got += piece
    return got


def abort(sock: trio.socket.SocketType) -> None:
    """Close with a reset."""
    abort_on_close(sock)  # type: ignore[arg-type]
    sock.close()


class Server:
    """What the server's application heard, or the error it got instead, by the plan's number."""

    def __init__(self) -> None:
        self.heard: dict[int, Heard | OSError] = {}
        self.open: dict[int, trio.socket.SocketType] = {}
        self.released = trio.Event()
        self._news = trio.lowlevel.ParkingLot()

    async def outcome(self, number: int) -> Heard | OSError:
        while number not in self.heard:
            await self._news.park()
        return self.heard[number]

    async def conversation(self, number: int) -> trio.socket.SocketType:
        """The server's socket of a conversation that is open."""
        while number not in self.open:
            await self._news.park()
        return self.open[number]

    async def serve(self, sock: trio.socket.SocketType) -> None:
        with sock:
            try:
                await sock.send(BANNER)
                plan = Plan(*_HEADER.unpack(await exactly(sock, _HEADER.size)))
            except OSError:
                return
            self.open[plan.number] = sock
            self._news.unpark_all()
            try:
                self.heard[plan.number] = await converse(sock, plan, "server", self.released)
            except OSError as error:
                self.heard[plan.number] = error
            del self.open[plan.number]
            self._news.unpark_all()


async def converse(sock: trio.socket.SocketType, plan: Plan, role: str, released: trio.Event) -> Heard:
    """One side of the plan; what it heard."""
    number, size = (2 * plan.number, plan.up) if role == "client" else (2 * plan.number + 1, plan.down)
    if plan.order == HOLD and role == "server":
        await released.wait()
    first = plan.order == (CLIENT_FIRST if role == "client" else SERVER_FIRST)
    if plan.order in (CLIENT_FIRST, SERVER_FIRST):
        if first:
            await say_and_end(sock, number, size)
            return await hear(sock)
        heard = await hear(sock)
        await say_and_end(sock, number, size)
        return heard
    speaking = trio.CancelScope()
    errors: list[OSError] = []

    async def speak() -> None:
        with speaking:
            try:
                await say_and_end(sock, number, size)
            except OSError as error:
                errors.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(speak)
        try:
            heard = await hear(sock)
        except OSError as error:
            speaking.cancel()
            errors.append(error)
    if errors:
        raise errors[0]
    return heard


@asynccontextmanager
async def serving(pod: Pod, ip: str, port: int) -> AsyncIterator[Server]:
    """A server in the pod; what is open when it ends is reset."""
    server = Server()
    listener = trio.socket.from_stdlib_socket(listen_tcp(ip=ip, port=port, netns=pod.fd, backlog=1024))

    async def accept(nursery: trio.Nursery) -> None:
        while True:
            sock, _ = await listener.accept()
            nursery.start_soon(server.serve, sock)

    with listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept, nursery)
            yield server
            nursery.cancel_scope.cancel()


async def begin(pod: Pod, ip: str, port: int, plan: Plan) -> trio.socket.SocketType:
    """A client's connection whose server has spoken and knows the plan."""
    sock = trio.socket.from_stdlib_socket(await trio.to_thread.run_sync(pod.connect, ip, port))
    assert await exactly(sock, len(BANNER)) == BANNER
    await sock.send(_HEADER.pack(*plan))
    return sock


async def whole(server: Server, sock: trio.socket.SocketType, plan: Plan) -> None:
    """Both sides heard everything that the other one said, and then its end."""
    with sock:
        assert await converse(sock, plan, "client", trio.Event()) == text(2 * plan.number + 1, plan.down)
    assert await server.outcome(plan.number) == text(2 * plan.number, plan.up)
