"""One decision to stop, seen by everybody, with a deadline.

A Drain is triggered once. Who has work to finish takes part (`with drain.working("listeners"):`); the drain is over
when all of them are done, or at the deadline, when what is left is told to end at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio


class Drain:
    def __init__(self) -> None:
        self._triggered = trio.Event()
        self._forced = trio.Event()
        self._idle = trio.Event()
        self._idle.set()
        self._work: dict[object, str] = {}
        self.why = ""
        """Who asked; empty until then."""
        self._deadline = 0.0

    @property
    def is_draining(self) -> bool:
        return self._triggered.is_set()

    @property
    def is_forced(self) -> bool:
        return self._forced.is_set()

    @property
    def unfinished(self) -> tuple[str, ...]:
        """The names of those who still work, sorted."""
        return tuple(sorted(self._work.values()))

    def seconds_left(self) -> float:
        """Seconds until the deadline; only while draining, 0 once it is past or forced."""
        if self._forced.is_set():
            return 0.0
        return max(0.0, self._deadline - trio.current_time())

    def trigger(self, why: str, seconds: float) -> None:
        """Begin; a second call changes nothing."""
        if self._triggered.is_set():
            return
        self.why = why
        self._deadline = trio.current_time() + seconds
        self._triggered.set()

    def force(self) -> None:
        """End at once: the deadline is now."""
        if not self._triggered.is_set():
            self.trigger("told to end at once", 0)
        self._forced.set()

    @contextmanager
    def working(self, name: str) -> Iterator[None]:
        """While inside, the drain is not over before its deadline."""
        token = object()
        if not self._work:
            self._idle = trio.Event()
        self._work[token] = name
        try:
            yield
        finally:
            del self._work[token]
            if not self._work:
                self._idle.set()

    async def wait_triggered(self) -> None:
        await self._triggered.wait()

    async def wait_forced(self) -> None:
        await self._forced.wait()

    async def wait_done(self) -> bool:
        """Wait for the trigger, then until all work is done (True) or the deadline cuts it short (False).

        At the deadline the drain is forced, for those who wait for that.
        """
        await self._triggered.wait()
        with trio.move_on_at(self._deadline):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._cancel_when_forced, nursery.cancel_scope)
                while self._work:
                    await self._idle.wait()
                nursery.cancel_scope.cancel()
        if not self._work:
            return True
        self._forced.set()
        return False

    async def _cancel_when_forced(self, scope: trio.CancelScope) -> None:
        await self._forced.wait()
        scope.cancel()
