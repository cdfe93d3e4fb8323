"""What two ends of an HTTP/2 connection agree on: preface, SETTINGS, PING. The h2 library's part of a tunnel.

It sees no stream and no DATA; the tunnel gives it whole SETTINGS and PING frames and sends what it answers. It is the
only place that imports h2.

An h2 connection takes 14 KB, more than all else of a tunnel that is Python's. So it is let go of once the peer's
SETTINGS have been answered. What comes later is an acknowledgement and PINGs, which are answered here; should there be
more SETTINGS, a new h2 connection reads them, for what they mean does not depend on those before.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings

from ztunnel.core.wire import frames
from ztunnel.worker.engine.parser import MAX_HEADER_LIST, Violation

Code = h2.settings.SettingCodes


class Settings(NamedTuple):
    """What we tell the peer; sizes in bytes."""

    stream_window: int = 4 * 1024 * 1024
    connection_window: int = 16 * 1024 * 1024
    frame_size: int = 1024 * 1024
    max_streams: int = 200


_FLAGS = 4
"""Where a frame's flags are."""
_PING = frames.frame(frames.PING, 0, 0, bytes(8))[: frames.HEADER_SIZE]
_NO_SETTINGS = frames.frame(frames.SETTINGS, 0, 0)


class Agreement:
    __slots__ = ("_agreed", "_answer", "_client", "_h2", "_settings")

    def __init__(self, settings: Settings, *, client: bool) -> None:
        self._settings = settings
        self._client = client
        self._h2: Any = self._connection()
        """None once both have agreed."""
        self._agreed = False
        self._answer = b""

    def begin(self) -> bytes:
        """Our preface and SETTINGS."""
        self._h2.initiate_connection()
        return bytes(self._h2.data_to_send())

    def preface_received(self) -> None:
        """The client's preface was complete and right."""
        self._h2.receive_data(frames.PREFACE)

    def receive(self, frame: bytes) -> Iterator[dict[Code, int]]:
        """The settings that a SETTINGS or PING frame changes; `answer` afterwards. Raises Violation."""
        is_answer = frame[_FLAGS] & frames.ACK
        head = frame[:_FLAGS] + b"\0" + frame[_FLAGS + 1 : frames.HEADER_SIZE]
        if head == _PING:
            if not is_answer:
                self._answer = frames.frame(frames.PING, frames.ACK, 0, frame[frames.HEADER_SIZE :])
            return
        if head == _NO_SETTINGS and is_answer:
            return
        if self._h2 is None:
            self._h2 = self._connection()
            self.begin()
            if not self._client:
                self.preface_received()
        try:
            events = self._h2.receive_data(frame)
        except h2.exceptions.ProtocolError as error:
            raise Violation(int(error.error_code or frames.PROTOCOL_ERROR), str(error)) from error
        self._answer = bytes(self._h2.data_to_send())
        for event in events:
            if isinstance(event, h2.events.RemoteSettingsChanged):
                if not self._agreed:
                    self._agreed = True
                    vars(self._h2).clear()  # it refers to itself and would wait for the garbage collector
                    self._h2 = None
                yield {code: change.new_value for code, change in event.changed_settings.items()}  # type: ignore[misc]

    def answer(self) -> bytes:
        """Acknowledgements to send; may be empty."""
        answer, self._answer = self._answer, b""
        return answer

    def _connection(self) -> Any:
        connection: Any = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=self._client, validate_inbound_headers=False)
        )
        settings = self._settings
        values: dict[Code, int] = {
            Code.INITIAL_WINDOW_SIZE: settings.stream_window,
            Code.MAX_FRAME_SIZE: settings.frame_size,
            Code.MAX_HEADER_LIST_SIZE: MAX_HEADER_LIST,
        }
        if self._client:
            values[Code.ENABLE_PUSH] = 0
        else:
            values[Code.MAX_CONCURRENT_STREAMS] = settings.max_streams
        connection.local_settings = h2.settings.Settings(client=self._client, initial_values=values)
        return connection
