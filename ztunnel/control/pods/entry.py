"""A pod that the manager keeps, and what is known of it: whether it is up, which namespace, which worker has it.

Must not know what is done about it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from ztunnel.control.pods.pod import Origin, PodSpec
from ztunnel.core.errors import ZtunnelError
from ztunnel.link.messages import PodFailed, PodGone, PodReady
from ztunnel.runtime.ready import Guard

Answer = PodReady | PodFailed | PodGone
"""What a worker says about a pod."""


class Entry:
    """A pod and what is known of it."""

    def __init__(self, spec: PodSpec, origin: Origin, guard: Guard | None) -> None:
        self.spec = spec
        self.origin = origin
        self.guard = guard
        self.up = False
        self.error: ZtunnelError | None = None
        self.netns: tuple[int, int] | None = None
        """Identity of the namespace that is served."""
        self.scope = trio.CancelScope()
        self.settled = trio.Event()
        """Up for the first time, or over."""
        self.over = trio.Event()
        self.vanished = trio.Event()
        self.in_worker = False
        """A worker has it, or may have."""
        self._served = trio.CancelScope()
        self._lost = False
        self.answers, self._heard = _answers()

    @contextmanager
    def served(self) -> Iterator[None]:
        """While one worker serves the pod. Left when that worker has ended, wherever the block is then."""
        self._lost = False
        self.answers, self._heard = _answers()
        with trio.CancelScope() as self._served:
            yield

    def lose(self) -> None:
        """The worker has ended."""
        self._lost = True
        self.in_worker = False
        self._served.cancel()
        self.answers.close()  # for those who wait behind a shield

    @property
    def is_lost(self) -> bool:
        return self._lost

    def renew(self) -> None:
        """Before each life of the namespace."""
        self.netns = None
        self.vanished = trio.Event()

    async def hear(self) -> Answer:
        return await self._heard.receive()

    def release(self) -> None:
        if self.guard is not None:
            self.guard.release()


def _answers() -> tuple[trio.MemorySendChannel[Answer], trio.MemoryReceiveChannel[Answer]]:
    return trio.open_memory_channel[Answer](math.inf)
