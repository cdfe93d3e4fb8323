"""One client's HTTP/1 requests, one after the other, answered by an ASGI application; h11 knows the syntax.

A request's body is thrown away after the answer. What h11 refuses is answered with its status, and is the last.
"""

from __future__ import annotations

import h11
import trio

from ztunnel.control.admin import asgi
from ztunnel.control.admin.asgi import App, Client, Message


async def converse(
    app: App, client: Client, received: bytes, *, deadline: float, header_timeout: float, header_bytes: int
) -> None:
    """Until the client ends it or is too slow. `received` came already; `deadline` is for the first header."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=header_bytes)
    if received:
        connection.receive_data(received)
    try:
        while isinstance(request := await _next_by(deadline, connection, client, header_bytes), h11.Request):
            await _answer(app, connection, client, request)
            deadline = trio.current_time() + header_timeout
            while connection.their_state is h11.SEND_BODY and connection.our_state is h11.DONE:
                if await _next_by(deadline, connection, client, header_bytes) is None:
                    return
            if connection.their_state is not h11.DONE or connection.our_state is not h11.DONE:
                return
            connection.start_next_cycle()
    except h11.RemoteProtocolError as error:
        if connection.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            await _refuse(connection, client, error.error_status_hint)


async def _next_by(deadline: float, connection: h11.Connection, client: Client, piece: int) -> object:
    """The client's next event, or None when it has not come in time. Raises h11.RemoteProtocolError."""
    with trio.move_on_at(deadline):
        while (event := connection.next_event()) is h11.NEED_DATA:
            connection.receive_data(bytes(await client.receive_some(piece)))
        return event
    return None


async def _answer(app: App, connection: h11.Connection, client: Client, request: h11.Request) -> None:
    if request.method == b"CONNECT":  # a success would make a tunnel of the connection
        await _refuse(connection, client, 405)
        return
    head = b""

    async def send(message: Message) -> None:
        nonlocal head
        if message["type"] == "http.response.start":
            head = connection.send(_response(message["status"], message["headers"]))
            return
        data, head = head, b""
        if message["body"] and request.method != b"HEAD":
            data += connection.send(h11.Data(data=message["body"]))
        if not message.get("more_body"):
            data += connection.send(h11.EndOfMessage())
        await client.send_all(data)

    await app(asgi.scope(request.method.decode(), request.target, list(request.headers)), asgi.no_body, send)


async def _refuse(connection: h11.Connection, client: Client, status: int) -> None:
    headers = [(b"content-length", b"0"), (b"connection", b"close")]
    await client.send_all(connection.send(_response(status, headers)) + connection.send(h11.EndOfMessage()))


def _response(status: int, headers: list[tuple[bytes, bytes]]) -> h11.Response:
    return h11.Response(status_code=status, headers=[*headers, asgi.date()])
