"""HTTP/2 as clients speak it that begin with it: several requests at once, windows, resets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, DataReceived, ResponseReceived, StreamEnded
from h2.settings import SettingCodes

from ztunnel.control.admin.asgi import Request, text

LARGE = 300_000
"""More than a connection's first window."""


async def told(scope: Any, receive: Any, send: Any) -> None:
    request = Request(scope)
    body = "x" * LARGE if request.path == "/large" else f"<{request.method} {request.path} {request.headers('host')}>"
    await text(body)(scope, receive, send)


class Client:
    def __init__(self, stream: trio.SocketStream) -> None:
        self.h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 10_000})
        self.stream = stream
        self.statuses: dict[int, str] = {}
        self.bodies: dict[int, bytes] = {}
        self.ended: list[int] = []
        self.closed = False

    def ask(self, number: int, path: str, method: str = "GET") -> None:
        head = [(":method", method), (":scheme", "http"), (":authority", "localhost"), (":path", path)]
        self.h2.send_headers(number, head, end_stream=True)
        self.bodies[number] = b""

    async def exchange(self) -> None:
        """Say what is to be said, and hear once."""
        await self.stream.send_all(self.h2.data_to_send())
        data = await self.stream.receive_some()
        self.closed |= not data
        for event in self.h2.receive_data(data):
            if isinstance(event, ResponseReceived):
                self.statuses[event.stream_id] = dict(event.headers)[":status"]
            elif isinstance(event, DataReceived):
                self.bodies[event.stream_id] += event.data
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, StreamEnded):
                self.ended.append(event.stream_id)
            self.closed |= isinstance(event, ConnectionTerminated)

    async def until_ended(self, *numbers: int) -> None:
        while not set(numbers) <= set(self.ended):
            await self.exchange()


@pytest.fixture
async def client(web: Any) -> AsyncIterator[Client]:
    async with await web.connect(await web.serve(told)) as stream:
        yield Client(stream)


async def test_requests_of_one_connection_are_answered_in_their_order(client: Client) -> None:
    client.ask(1, "/a?b")
    client.ask(3, "/large")
    client.ask(5, "/c", "HEAD")
    await client.until_ended(1, 3, 5)
    assert client.ended == [1, 3, 5]
    assert client.statuses == {1: "200", 3: "200", 5: "200"}
    assert client.bodies == {1: b"<GET /a ['localhost']>", 3: b"x" * LARGE, 5: b""}


async def test_an_answer_that_is_reset_does_not_hold_up_the_next(client: Client) -> None:
    client.ask(1, "/large")
    while not client.bodies[1]:
        await client.exchange()
    client.h2.reset_stream(1)
    client.ask(3, "/b")
    await client.until_ended(3)
    assert client.bodies[3] == b"<GET /b ['localhost']>"
    assert len(client.bodies[1]) < LARGE


async def test_what_is_no_http2_after_all_is_told_so(client: Client) -> None:
    await client.exchange()
    await client.stream.send_all(b"\0\0\1\0\0\0\0\0\0x")  # DATA on stream 0
    while not client.closed:
        await client.exchange()
