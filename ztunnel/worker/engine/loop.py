"""The engine's event loop: readiness callbacks, timers, and the buffers that all connections share.

Theory of operation. One epoll set, level-triggered. `turn` waits for readiness and calls the handler of each
ready descriptor; handlers never block and never keep a buffer: what they read lies in `scratch`, which belongs to
the loop and is overwritten by the next read. What could not be sent is copied out; so memory is spent on bytes
that wait, not on connections that exist.

Writes to a tunnel are corked: frames of one turn pile up in `scratch.clear`, owned by one tunnel at a time, and
are sealed and sent when another tunnel claims the space, when it is full, or at the end of the turn.

Sockets are closed at the end of a turn (`close`), so that a descriptor's number cannot come back within the same
batch of events and be mistaken for its predecessor.

The loop knows no trio: whoever hosts it (see `driver`) waits on `fileno()` and calls `turn`.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Hashable
from typing import Protocol

from ztunnel.worker.engine.linger import Lingering
from ztunnel.worker.engine.scratch import Scratch

IN: int = select.EPOLLIN
OUT: int = select.EPOLLOUT
FAILED: int = select.EPOLLERR
"""The socket has an error: a reset, an unreachable peer."""
HUNG_UP: int = select.EPOLLHUP
"""Both directions of the socket have ended."""

PARKED = -1
"""What an owner notes in place of events for a socket that it has taken out of the loop for now."""

EVENTS_PER_TURN = 128
LONGEST_WAIT = 86400.0
"""Seconds of one turn; epoll_wait(2) counts milliseconds in an int."""

log = logging.getLogger("ztunnel.worker.engine.loop")

Handler = Callable[[int], None]


class Corked(Protocol):
    """Whoever has bytes in `scratch.clear`."""

    def flush(self) -> None: ...


class Timer:
    """A pending call; `cancel` may be called at any time, also after it fired."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[[], None]) -> None:
        self._call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self._call = None

    def fire(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call()


class Loop:
    """One thread's event loop. `now` is the monotonic time of the current turn, in seconds."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: list[Handler | None] = []
        """By descriptor: these are small numbers, used again."""
        self._timers: list[tuple[float, int, Timer]] = []
        self._sequence = itertools.count()
        self._soon: list[Callable[[], None]] = []
        self._closing: list[socket.socket] = []
        self.scratch = Scratch()
        self.corked: Corked | None = None
        self.lingering = Lingering(self)
        self.now = time.monotonic()
        self.in_turn = False
        """Whatever is queued is seen to at the end of this turn; outside of one the host must be woken."""
        self._open = True
        self._from_threads: deque[Callable[[], object]] = deque()
        self._waker = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.add(self._waker, IN, self._woken)

    def fileno(self) -> int:
        return self._epoll.fileno()

    def __repr__(self) -> str:
        watched = len(self._handlers) - self._handlers.count(None)
        return f"<Loop {watched} descriptors, {len(self._timers)} timers>"

    # ---- descriptors ----

    def add(self, fd: int, events: int, handler: Handler) -> None:
        handlers = self._handlers
        if fd >= len(handlers):
            handlers.extend([None] * (fd + 1 - len(handlers)))
        handlers[fd] = handler
        self._epoll.register(fd, events)

    def modify(self, fd: int, events: int) -> None:
        self._epoll.modify(fd, events)

    def handle(self, fd: int, events: int, handler: Handler) -> None:
        """Change both the events and the handler of a descriptor that was added before."""
        self._handlers[fd] = handler
        self._epoll.modify(fd, events)

    def remove(self, fd: int) -> None:
        """Forget a descriptor; unknown ones are ignored."""
        if self._forget(fd):
            self._epoll.unregister(fd)

    def _forget(self, fd: int) -> bool:
        handlers = self._handlers
        if not 0 <= fd < len(handlers) or handlers[fd] is None:
            return False
        handlers[fd] = None
        return True

    def close(self, sock: socket.socket) -> None:
        """Forget the socket now and close it at the end of the turn (which takes it out of the epoll set)."""
        self._forget(sock.fileno())
        self._closing.append(sock)
        self.wake()

    def wake(self) -> None:
        """Have the host take a turn soon; needed after anything was queued outside of one. Cheap inside one."""
        if not self.in_turn and self._open:
            os.eventfd_write(self._waker, 1)

    def call_threadsafe(self, call: Callable[[], object]) -> None:
        """From any thread: soon, in this loop's thread."""
        self._from_threads.append(call)
        if self._open:
            os.eventfd_write(self._waker, 1)

    def _woken(self, _event: int) -> None:
        os.eventfd_read(self._waker)
        for _ in range(len(self._from_threads)):
            self._guard(self._from_threads.popleft())

    # ---- time ----

    def call_soon(self, call: Callable[[], None]) -> None:
        """At the end of this turn, or of the next if none is under way."""
        self._soon.append(call)
        self.wake()

    def call_later(self, delay: float, call: Callable[[], None]) -> Timer:
        timer = Timer(call)
        heapq.heappush(self._timers, (time.monotonic() + delay, next(self._sequence), timer))
        self.wake()
        return timer

    def next_deadline(self) -> float | None:
        """Monotonic time when `turn` is wanted even without readiness."""
        if self._soon or self._closing or self.corked is not None:
            return 0.0
        return self._timers[0][0] if self._timers else None

    # ---- running ----

    def turn(self, timeout: float) -> int:
        """Wait at most `timeout` seconds, handle what is ready, fire due timers. The number of events handled.

        Timers may be late by as long as the turn before took: the clock is read once in a turn.
        """
        timers = self._timers
        if timeout:
            if self._soon:  # whatever else was queued outside of a turn has written to the waker
                timeout = 0
            elif timers:
                left = timers[0][0] - self.now
                if timeout < 0 or left < timeout:
                    timeout = 0 if left < 0 else left if left < LONGEST_WAIT else LONGEST_WAIT
        events = self._epoll.poll(timeout, EVENTS_PER_TURN)
        self.now = now = time.monotonic()
        self.in_turn = True
        handlers = self._handlers
        for fd, event in events:
            handler = handlers[fd]
            if handler is None:
                continue
            try:
                handler(event)
            except Exception:
                self._crashed(fd, handler)
        if self._soon or (timers and timers[0][0] <= now):
            self._make_calls()
        if self.corked is not None:
            self._uncork()
        if self._closing:
            self._close_sockets()
        self.in_turn = False
        return len(events)

    def _make_calls(self) -> None:
        """Of timers that are due, and of whatever wants to be called soon."""
        timers = self._timers
        while timers and timers[0][0] <= self.now:
            self._guard(heapq.heappop(timers)[2].fire)
        soon, self._soon = self._soon, []
        for call in soon:
            self._guard(call)

    def _uncork(self) -> None:
        while (corked := self.corked) is not None:
            self.corked = None
            try:
                corked.flush()
            except Exception:
                log.exception("flushing %r failed; its connection is left to its time limits", corked)

    def _close_sockets(self) -> None:
        closing, self._closing = self._closing, []
        for sock in closing:
            sock.close()

    def _guard(self, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception:
            log.exception("a timer's call failed; the connection it served is left to its time limits")

    def _crashed(self, fd: int, handler: Handler) -> None:
        """A bug in one connection's handler ends that connection, not its neighbours."""
        owner = getattr(handler, "__self__", None)
        log.exception("the handler of %r failed; its connection is closed", owner)
        self.remove(fd)
        abort = getattr(owner, "abort", None)
        if abort is not None:
            self._guard(lambda: abort("internal error"))

    def shutdown(self) -> None:
        """Close what waits to be closed, and the epoll set itself."""
        self.lingering.close()
        for _ in range(2):  # what is flushed may fail, and a failure closes its socket a call later
            self._make_calls()
            self._uncork()
            self._close_sockets()
        self._open = False
        os.close(self._waker)
        self._epoll.close()


class Deadlines:
    """Many time limits of the same length: O(1) to set and to lift, one timer for all of them.

    `expire(key)` is called for a key that was not discarded within `seconds`; adding a key again starts anew. Where
    there may be no more than `most`, one more expires the oldest before its time.
    """

    def __init__(
        self, loop: Loop, seconds: float, expire: Callable[[Hashable], None], *, most: int = sys.maxsize
    ) -> None:
        self._loop = loop
        self._most = most
        self._seconds = seconds
        self._expire = expire
        self._due: dict[Hashable, float] = {}
        self._timer: Timer | None = None

    def __len__(self) -> int:
        return len(self._due)

    def add(self, key: Hashable) -> None:
        self._due.pop(key, None)  # the order of the dict is the order of the deadlines
        self._due[key] = time.monotonic() + self._seconds
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self._sweep)
        if len(self._due) > self._most:
            oldest = next(iter(self._due))
            del self._due[oldest]
            self._expire(oldest)

    def discard(self, key: Hashable) -> None:
        self._due.pop(key, None)

    def _sweep(self) -> None:
        now = time.monotonic()
        try:
            while self._due:
                key, due = next(iter(self._due.items()))
                if due > now:
                    break
                del self._due[key]
                self._expire(key)
        finally:
            self._timer = None
            if self._due:
                first = next(iter(self._due.values()))
                self._timer = self._loop.call_later(max(0.0, first - now), self._sweep)
