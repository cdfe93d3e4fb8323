"""What two ends of an HTTP/2 connection agree on: preface, SETTINGS, PING. The h2 library's part of a tunnel.

It sees no stream and no DATA; the tunnel gives it whole SETTINGS and PING frames and sends what it answers. It is the
only place that imports h2.
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


class Agreement:
    def __init__(self, settings: Settings, *, client: bool) -> None:
        connection: Any = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=client, validate_inbound_headers=False)
        )
        values: dict[Code, int] = {
            Code.INITIAL_WINDOW_SIZE: settings.stream_window,
            Code.MAX_FRAME_SIZE: settings.frame_size,
            Code.MAX_HEADER_LIST_SIZE: MAX_HEADER_LIST,
        }
        if client:
            values[Code.ENABLE_PUSH] = 0
        else:
            values[Code.MAX_CONCURRENT_STREAMS] = settings.max_streams
        connection.local_settings = h2.settings.Settings(client=client, initial_values=values)
        self._h2 = connection

    def begin(self) -> bytes:
        """Our preface and SETTINGS."""
        self._h2.initiate_connection()
        return self._to_send()

    def preface_received(self) -> None:
        """The client's preface was complete and right."""
        self._h2.receive_data(frames.PREFACE)

    def receive(self, frame: bytes) -> Iterator[dict[Code, int]]:
        """The settings that a SETTINGS or PING frame changes; `answer` afterwards. Raises Violation."""
        try:
            events = self._h2.receive_data(frame)
        except h2.exceptions.ProtocolError as error:
            raise Violation(int(error.error_code or frames.PROTOCOL_ERROR), str(error)) from error
        for event in events:
            if isinstance(event, h2.events.RemoteSettingsChanged):
                yield {code: change.new_value for code, change in event.changed_settings.items()}  # type: ignore[misc]

    def answer(self) -> bytes:
        """Acknowledgements to send; may be empty."""
        return self._to_send()

    def _to_send(self) -> bytes:
        return bytes(self._h2.data_to_send())
