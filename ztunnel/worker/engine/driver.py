"""Hosts an engine loop inside trio: the loop's epoll set is one descriptor that one task waits for."""

from __future__ import annotations

import time

import trio

from ztunnel.worker.engine.loop import Loop

SLICE = 0.001
"""Seconds of turns in a row before trio's other tasks get a chance."""


async def drive(loop: Loop) -> None:
    """Run until cancelled."""
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
