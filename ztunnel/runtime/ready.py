"""What readiness still waits for, as named guards; ready is no guards left.

Flips back whenever a guard is taken again. Knows no HTTP and no probes.
"""

from __future__ import annotations

import logging
import math
from types import TracebackType

import trio

log = logging.getLogger("ztunnel.runtime.ready")


class Guard:
    """Keeps the agent from being ready until `release`; releasing twice is releasing once."""

    def __init__(self, ready: Ready, name: str) -> None:
        self._ready = ready
        self.name = name

    def release(self) -> None:
        self._ready._release(self)

    def __enter__(self) -> Guard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Ready:
    """Guards by name; a name may be taken more than once and is pending until all of its guards are released."""

    def __init__(self) -> None:
        self._guards: dict[Guard, float] = {}
        self._reached = trio.Event()
        self._reached.set()
        self._began = -math.inf

    @property
    def is_ready(self) -> bool:
        return not self._guards

    @property
    def pending(self) -> tuple[str, ...]:
        """Names, sorted, each once."""
        return tuple(sorted({guard.name for guard in self._guards}))

    def guard(self, name: str) -> Guard:
        """Take a guard; not ready from now on."""
        now = trio.current_time()
        if not self._guards:
            self._began = now
            if self._reached.is_set():
                self._reached = trio.Event()
        taken = Guard(self, name)
        self._guards[taken] = now
        return taken

    async def wait_ready(self) -> None:
        """Returns at a moment when no guard is left."""
        while self._guards:
            await self._reached.wait()

    def _release(self, guard: Guard) -> None:
        taken = self._guards.pop(guard, None)
        if taken is None:
            return
        now = trio.current_time()
        if self._guards:
            waiting = ", ".join(self.pending)
            log.info("no longer waiting for %s after %.3f s; still for %s", guard.name, now - taken, waiting)
        else:
            log.info(
                "no longer waiting for %s after %.3f s; for nothing more, after %.3f s in all",
                guard.name,
                now - taken,
                now - self._began,
            )
            self._reached.set()
