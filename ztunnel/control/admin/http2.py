"""HTTP/2 for clients that begin with it: requests are answered one after the other, by an ASGI application.

Request bodies are thrown away as they come. A client that does not take its answer holds up nobody but itself.
"""

from __future__ import annotations

import trio
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, DataReceived, RequestReceived, StreamReset
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings

from ztunnel.control.admin import asgi
from ztunnel.control.admin.asgi import App, Client, Message, Scope

MAX_STREAMS = 8
READ_SIZE = 65_536


async def converse(
    app: App, client: Client, received: bytes, *, deadline: float, header_timeout: float, header_bytes: int
) -> None:
    """Until the client ends it or is too slow. `received` came already; `deadline` is for the first header."""
    conversation = _Conversation(app, client, header_bytes)
    try:
        await conversation.hear(received)
        while await conversation.has_request_by(deadline):
            await conversation.answer_next()
            deadline = trio.current_time() + header_timeout
    except ProtocolError:
        await conversation.flush()


class _StreamGone(Exception):
    """The client does not want the answer any more."""


class _Conversation:
    def __init__(self, app: App, client: Client, header_bytes: int) -> None:
        self._app = app
        self._client = client
        self._h2 = H2Connection(H2Configuration(client_side=False, header_encoding=False))
        self._h2.local_settings = Settings(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
                SettingCodes.MAX_HEADER_LIST_SIZE: header_bytes,
            },
        )
        self._h2.initiate_connection()
        self._requests: dict[int, list[tuple[bytes, bytes]]] = {}
        """Headers by stream, in the order they came."""
        self._answering = 0
        self._over = False

    async def hear(self, data: bytes | bytearray) -> None:
        """Take what came and say what has to be said to it. Raises ProtocolError."""
        self._over = self._over or not data
        for event in self._h2.receive_data(bytes(data)):
            if isinstance(event, RequestReceived):
                self._requests[event.stream_id] = list(event.headers)
            elif isinstance(event, DataReceived):
                self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, StreamReset):
                self._requests.pop(event.stream_id, None)
                if event.stream_id == self._answering:
                    self._answering = 0
            elif isinstance(event, ConnectionTerminated):
                self._over = True
        await self.flush()

    async def flush(self) -> None:
        if data := self._h2.data_to_send():
            await self._client.send_all(data)

    async def has_request_by(self, deadline: float) -> bool:
        with trio.move_on_at(deadline):
            while not self._requests and not self._over:
                await self.hear(await self._client.receive_some(READ_SIZE))
        return bool(self._requests)

    async def answer_next(self) -> None:
        stream = next(iter(self._requests))
        headers = self._requests.pop(stream)
        self._answering = stream
        scope = _scope(headers)

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                status = (b":status", str(message["status"]).encode())
                self._h2.send_headers(stream, [status, *message["headers"], asgi.date()])
            else:
                if scope["method"] != "HEAD":
                    await self._send_body(stream, message["body"])
                if not message.get("more_body"):
                    self._h2.end_stream(stream)
                await self.flush()

        try:
            await self._app(scope, asgi.no_body, send)
        except _StreamGone:
            return

    async def _send_body(self, stream: int, body: bytes) -> None:
        """As the client's windows allow; its words are heard meanwhile."""
        at = 0
        while at < len(body):
            if self._over or self._answering != stream:
                raise _StreamGone
            room = min(self._h2.local_flow_control_window(stream), self._h2.max_outbound_frame_size)
            if room:
                self._h2.send_data(stream, body[at : at + room])
                at += room
                await self.flush()
            else:
                await self.hear(await self._client.receive_some(READ_SIZE))


def _scope(headers: list[tuple[bytes, bytes]]) -> Scope:
    pseudo = {name: value for name, value in headers if name.startswith(b":")}
    host = [(b"host", pseudo[b":authority"])] if b":authority" in pseudo else []
    plain = [*host, *(pair for pair in headers if not pair[0].startswith(b":"))]
    return asgi.scope(pseudo[b":method"].decode("latin-1"), pseudo.get(b":path", b""), plain)
