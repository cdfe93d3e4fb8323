"""Signals that end the demo are noted when they come and raised only where the demo waits.

So that no exception can arise between taking something and writing down that it must be given back, nor on a thread
that is visiting another namespace.
"""

from __future__ import annotations

import select
import signal
import socket
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
POLL = 0.02
"""Seconds between two looks of `until`."""


class Interrupted(Exception):
    """A signal asked for the end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Interrupts:
    """Takes over the signals while it is open; main thread only."""

    def __init__(self) -> None:
        self._number = 0
        self._reader, self._writer = socket.socketpair()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._writer.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        self._reader.close()
        self._writer.close()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._number = self._number or number

    def check(self) -> None:
        """Raises Interrupted when a signal has come."""
        if self._number:
            raise Interrupted(self._number)

    def pause(self, seconds: float | None) -> None:
        """Wait so long (None: for ever). Raises Interrupted as soon as a signal has come."""
        self.check()
        select.select([self._reader], [], [], seconds)
        self.check()

    def until(self, look: Callable[[], T | None], seconds: float) -> T | None:
        """What `look` finds, asked again and again for so long; None when it found nothing."""
        deadline = time.monotonic() + seconds
        while True:
            found = look()
            if found is not None or time.monotonic() > deadline:
                return found
            self.pause(POLL)
