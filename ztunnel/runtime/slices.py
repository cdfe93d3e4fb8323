"""Long work on a thread that has other things to do: in slices, with turns for all the rest in between.

The work is a generator that yields wherever it may be interrupted, and knows nothing of time.
"""

from __future__ import annotations

from collections.abc import Generator
from time import perf_counter
from typing import TypeVar

import trio

T = TypeVar("T")
Steps = Generator[None, None, T]

SLICE = 0.0003
"""Seconds: what a byte waits that comes in the middle of one."""


def at_once(steps: Steps[T]) -> T:
    """The result, without a pause: where nothing else waits, or in a thread."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result


async def in_slices(steps: Steps[T], pause: float = 0.0) -> T:
    """The result; every other task, and the loop that trio may be a guest of, gets its turn after each slice.

    `pause` is what they get at least (s): a message takes several turns, some of them elsewhere, before the next one.
    """
    while True:
        until = perf_counter() + SLICE
        try:
            while perf_counter() < until:
                next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
        await trio.sleep(pause)
