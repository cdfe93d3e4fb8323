"""How an engine loop and trio share a thread; the engine's only file that knows trio.

`host` makes the engine's loop the thread's main loop and trio its guest: trio costs nothing while no task has
anything to do, so a byte on its way pays for one epoll_wait per turn and no more. `drive` is the other way round, one
trio task that waits for the loop's descriptor: the simplest, for tests and wherever trio is the host already; it
costs each small message up to half as much again.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import outcome
import trio

from ztunnel.worker.engine.loop import Loop

SLICE = 0.001
"""Seconds of turns in a row before trio's other tasks get a chance."""

T = TypeVar("T")


def host(loop: Loop, run: Callable[[], Awaitable[T]]) -> T:
    """Run trio's main task as a guest of the loop; its result, or its exception. Closes the loop."""
    results: list[outcome.Outcome[T]] = []
    trio.lowlevel.start_guest_run(
        run,
        run_sync_soon_threadsafe=loop.call_threadsafe,
        done_callback=results.append,
        restrict_keyboard_interrupt_to_checkpoints=True,
    )
    while not results:
        loop.turn(-1)
    loop.shutdown()
    return results[0].unwrap()


async def drive(loop: Loop) -> None:
    """Take the loop's turns in a task, until cancelled."""
    fd = loop.fileno()
    while True:
        deadline = loop.next_deadline()
        if deadline is None:
            await trio.lowlevel.wait_readable(fd)
        else:
            with trio.move_on_after(max(0.0, deadline - time.monotonic())):
                await trio.lowlevel.wait_readable(fd)
        until = time.monotonic() + SLICE
        while loop.turn(0) and time.monotonic() < until:
            pass
