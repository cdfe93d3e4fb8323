"""Whatever a client does, it costs a bounded time and disturbs nobody else."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from ztunnel.control.admin.asgi import text
from ztunnel.control.admin.web import Limits

GET = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
LIMITS = Limits()


async def hello(scope: Any, receive: Any, send: Any) -> None:
    await text("hello")(scope, receive, send)


async def huge(scope: Any, receive: Any, send: Any) -> None:
    await text("x" * (64 << 20))(scope, receive, send)


@pytest.fixture
def clock(autojump_clock: trio.testing.MockClock) -> trio.testing.MockClock:
    """Jumps over timeouts, but leaves the kernel a moment to carry bytes over loopback."""
    autojump_clock.autojump_threshold = 0.02
    return autojump_clock


async def test_a_request_is_answered(web: Any) -> None:
    port = await web.serve(hello)
    answer = await web.exchange(port, GET)
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"hello")


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
        b"\x00" * 100,
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nbroken header\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 20_000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 64,
        b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nupgrade: h2c\r\nconnection: upgrade\r\nhttp2-settings: !\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
        b"\r\n" * 5000,
    ],
)
async def test_garbage_is_over_soon_and_the_next_client_is_served(
    web: Any, clock: trio.testing.MockClock, garbage: bytes
) -> None:
    port = await web.serve(hello)
    with trio.fail_after(LIMITS.lifetime + 1):
        await web.exchange(port, garbage)
    assert (await web.exchange(port, GET)).endswith(b"hello")


async def test_an_oversized_header_is_refused_as_such(web: Any) -> None:
    port = await web.serve(hello)
    answer = await web.exchange(port, b"GET / HTTP/1.1\r\nx: " + b"y" * LIMITS.header_bytes)
    assert answer.startswith(b"HTTP/1.1 431")


@pytest.mark.parametrize("start", [b"", b"G", b"GET / HTTP/1.1\r\n"])
async def test_a_silent_client_is_closed_at_the_header_limit(
    web: Any, clock: trio.testing.MockClock, start: bytes
) -> None:
    port = await web.serve(hello)
    before = trio.current_time()
    await web.exchange(port, start)
    assert trio.current_time() - before == pytest.approx(LIMITS.header_timeout, abs=0.5)


async def test_a_trickling_client_gains_no_time(web: Any, clock: trio.testing.MockClock) -> None:
    port = await web.serve(hello)
    before = trio.current_time()
    async with await web.connect(port) as stream:
        with pytest.raises(trio.BrokenResourceError):  # noqa: PT012
            for byte in b"GET / HTTP/1.1\r\nhost: " + b"x" * 1000:
                await stream.send_all(bytes([byte]))
                await trio.sleep(0.1)
    assert trio.current_time() - before == pytest.approx(LIMITS.header_timeout, abs=0.5)


async def test_a_client_that_does_not_read_is_cut_off(web: Any, clock: trio.testing.MockClock) -> None:
    port = await web.serve(huge, msgspec.structs.replace(LIMITS, connections=1))
    async with await web.connect(port) as stream:
        await stream.send_all(GET)
        await trio.sleep(LIMITS.write_timeout + 1)
        assert (await web.exchange(port, b"")) == b"", "its place is free again: this client is let in"


async def test_a_client_that_never_ends_its_body_is_cut_off(web: Any, clock: trio.testing.MockClock) -> None:
    port = await web.serve(hello, msgspec.structs.replace(LIMITS, connections=1))
    async with await web.connect(port) as stream:
        await stream.send_all(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n" + b"x" * 100)
        with trio.fail_after(LIMITS.lifetime + 1):
            while await stream.receive_some():
                pass
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert (await web.exchange(port, GET)).endswith(b"hello")


async def test_clients_beyond_the_limit_get_503_and_the_others_stay(web: Any) -> None:
    port = await web.serve(hello, msgspec.structs.replace(LIMITS, connections=2))
    async with await web.connect(port) as first, await web.connect(port) as second:
        for stream in (first, second):
            await stream.send_all(GET[:-2])
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert (await web.exchange(port, b"")).startswith(b"HTTP/1.1 503")
        await first.send_all(GET[-2:])
        assert (await first.receive_some()).startswith(b"HTTP/1.1 200")


async def test_http2_with_prior_knowledge_is_answered(web: Any) -> None:
    from h2.config import H2Configuration
    from h2.connection import H2Connection
    from h2.events import DataReceived, StreamEnded

    port = await web.serve(hello)
    client = H2Connection(H2Configuration(client_side=True))
    client.initiate_connection()
    headers = [(":method", "GET"), (":scheme", "http"), (":authority", "localhost"), (":path", "/")]
    client.send_headers(1, headers, end_stream=True)
    body, ended = b"", False
    async with await web.connect(port) as stream:
        while not ended:
            await stream.send_all(client.data_to_send())
            for event in client.receive_data(await stream.receive_some()):
                if isinstance(event, DataReceived):
                    body += event.data
                ended = ended or isinstance(event, StreamEnded)
    assert body == b"hello"
