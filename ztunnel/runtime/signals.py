"""SIGTERM and SIGINT: the first one drains, the second one ends at once.

trio turns signals into an iterator; nothing runs in a signal handler.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import AsyncIterable, Callable

import trio

from ztunnel.runtime.drain import Drain

log = logging.getLogger("ztunnel.runtime.signals")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


async def stop_on_signals(
    drain: Drain, seconds: float, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Run for the life of the process; started once signals are caught.

    `seconds` is what open work gets after the first signal.
    """
    with trio.open_signal_receiver(*STOP_SIGNALS) as received:
        task_status.started()
        await follow(received, drain, seconds, log.info)


async def follow(received: AsyncIterable[int], drain: Drain, seconds: float, tell: Callable[[str], None]) -> None:
    """The decision, apart from where signals come from."""
    async for number in received:
        name = signal.Signals(number).name
        if not drain.is_draining:
            tell(f"{name}: stopping, open work has {seconds:g} s; a second signal ends it at once")
            drain.trigger(name, seconds)
        else:
            tell(f"{name} again: ending at once")
            drain.force()
            return
