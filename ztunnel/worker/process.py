"""A worker as a process of its own: what it is besides `main.serve`.

Its supervisor gives it links over the leash, to one control half after the other and to the other workers, and ends
it by letting the leash go.
Signals that are meant for the agent are the supervisor's business. The engine's loop is the main loop, trio its guest.
"""

from __future__ import annotations

import gc
import logging
import math
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from functools import partial

import trio

from ztunnel.config.settings import Settings
from ztunnel.core.errors import PlatformError
from ztunnel.link.channel import Channel, VersionMismatch
from ztunnel.link.leash import Handed, handed
from ztunnel.link.messages import Down, Up
from ztunnel.link.unix import worker_end
from ztunnel.linux.enter import set_process_name
from ztunnel.linux.schedule import set_turn
from ztunnel.runtime.supervise import first_cause
from ztunnel.worker import main
from ztunnel.worker.engine.driver import host
from ztunnel.worker.engine.loop import Loop

GC_THRESHOLDS = (5_000, 20, 500)
"""Connections are freed by reference counts, so there is little to collect; and a collection stops every byte: one of
5,000 young objects for 0.2 ms, one of 50,000, as a push of state makes, for 3 ms."""
TURN = 0.0005
"""Seconds of the processor that a worker asks for at a time: long enough to carry what has come, and shorter than
others' turns, so that a byte does not wait for theirs to end."""
SWITCH = 0.0001
"""Seconds that another thread of the process may keep the interpreter while a byte waits for it."""
NOT_OURS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

log = logging.getLogger("ztunnel.worker")


def run(number: int, leash: socket.socket, settings: Settings, set_log_filter: Callable[[str], None]) -> None:
    """Serve until the leash ends.

    Raises PlatformError when a control half comes that speaks another version: a newer worker has to take this place.
    """
    set_process_name(f"ztunnel-w{number}")
    hurry()
    for each in NOT_OURS:
        signal.signal(each, signal.SIG_IGN)
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    loop = Loop()
    with leash:
        try:
            host(loop, partial(_serve, number, leash, settings, loop, set_log_filter))
        except BaseExceptionGroup as group:
            cause = first_cause(group)
            if not isinstance(cause, VersionMismatch):
                raise
            raise PlatformError(
                f"worker {number} cannot go on after an upgrade: {cause}",
                hint="another one of the new release takes over; its connections begin anew",
            ) from None


def hurry() -> None:
    """Let the thread that carries bytes run as soon as there are any, before other processes and other threads."""
    sys.setswitchinterval(SWITCH)
    if not set_turn(TURN):
        log.debug("this kernel does not let a process choose its turns: bytes may wait for those of others")


async def _serve(
    number: int, leash: socket.socket, settings: Settings, loop: Loop, set_log_filter: Callable[[str], None]
) -> None:
    controls, to_controls = _line()
    siblings, to_siblings = _line()

    async def sort() -> None:
        with to_controls, to_siblings:
            async for each in handed(leash):
                (to_controls if each.number == number else to_siblings).send_nowait(each)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sort)
        await main.serve(_links(controls), settings, loop, siblings=siblings, set_log_filter=set_log_filter)


def _line() -> tuple[trio.MemoryReceiveChannel[Handed], trio.MemorySendChannel[Handed]]:
    send, receive = trio.open_memory_channel[Handed](math.inf)
    return receive, send


async def _links(controls: trio.MemoryReceiveChannel[Handed]) -> AsyncIterator[Channel[Up, Down]]:
    async for each in controls:
        link = worker_end(each.sock)
        try:
            yield link
        finally:
            link.close()
