"""A limit on how much runs at once, where the more urgent goes first and urgency may change while waiting."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio


class _Waiter:
    def __init__(self, rank: Callable[[], int]) -> None:
        self.rank = rank
        self.granted = trio.Event()


class PrioritySlots:
    """`count` holders at once; of those waiting, the one with the lowest rank is next, the oldest among equals."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: list[_Waiter] = []

    @asynccontextmanager
    async def hold(self, rank: Callable[[], int]) -> AsyncIterator[None]:
        """`rank` is asked when a slot becomes free, so it may change until then."""
        await self._acquire(rank)
        try:
            yield
        finally:
            self._release()

    async def _acquire(self, rank: Callable[[], int]) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._free:
            self._free -= 1
            return
        waiter = _Waiter(rank)
        self._waiting.append(waiter)
        try:
            await waiter.granted.wait()
        except trio.Cancelled:
            if waiter.granted.is_set():
                self._release()
            else:
                self._waiting.remove(waiter)
            raise

    def _release(self) -> None:
        if not self._waiting:
            self._free += 1
            return
        waiter = min(self._waiting, key=lambda waiting: waiting.rank())
        self._waiting.remove(waiter)
        waiter.granted.set()
