"""HTTP/1 as clients speak it: one connection may ask again and again, and what a request carries is not in the way."""

from __future__ import annotations

from typing import Any

import pytest

from ztunnel.control.admin.asgi import Request, text

LAST = b"GET /last HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


async def told(scope: Any, receive: Any, send: Any) -> None:
    """Answers with what was asked."""
    request = Request(scope)
    await text(f"<{request.method} {request.path} {dict(request.query)}>")(scope, receive, send)


async def pieces(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for piece in (b"one", b"two"):
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def broken(scope: Any, receive: Any, send: Any) -> None:
    raise RuntimeError("no answer")


@pytest.mark.parametrize(
    "first",
    [
        b"GET /first HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST /first HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n12345",
        b"POST /first HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"POST /first HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\nxy",
    ],
)
async def test_a_connection_is_used_again_whatever_the_request_carried(web: Any, first: bytes) -> None:
    answer = await web.exchange(await web.serve(told), first + LAST)
    assert answer.count(b"HTTP/1.1 200") == 2
    assert b" /first {}>" in answer
    assert answer.endswith(b"<GET /last {}>")


async def test_path_and_query_are_decoded(web: Any) -> None:
    answer = await web.exchange(await web.serve(told), LAST.replace(b"/last", b"/a%20b?level=a%3Db&reset"))
    assert answer.endswith(b"<GET /a b {'level': 'a=b', 'reset': ''}>")


async def test_head_gets_the_header_alone(web: Any) -> None:
    answer = await web.exchange(await web.serve(told), LAST.replace(b"GET", b"HEAD"))
    assert b"content-length: 15\r\n" in answer.lower()
    assert answer.endswith(b"\r\n\r\n")


async def test_an_answer_made_in_pieces_is_sent_in_chunks_or_ends_with_the_connection(web: Any) -> None:
    port = await web.serve(pieces)
    assert (await web.exchange(port, LAST)).endswith(b"\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")
    assert (await web.exchange(port, b"GET / HTTP/1.0\r\n\r\n")).endswith(b"\r\n\r\nonetwo")


async def test_connect_makes_no_tunnel(web: Any) -> None:
    answer = await web.exchange(await web.serve(told), b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 405")


async def test_an_application_that_fails_ends_the_connection(web: Any) -> None:
    assert await web.exchange(await web.serve(broken), LAST) == b""
