"""A worker as a process of its own: what it is besides `main.serve`.

Its supervisor gives it links over the leash, one control half after the other, and ends it by letting the leash go.
Signals that are meant for the agent are the supervisor's business. The engine's loop is the main loop, trio its guest.
"""

from __future__ import annotations

import gc
import signal
import socket
from collections.abc import AsyncIterator, Callable
from functools import partial

from ztunnel.config.settings import Settings
from ztunnel.link.channel import Channel
from ztunnel.link.leash import handed
from ztunnel.link.messages import Down, Up
from ztunnel.link.unix import worker_end
from ztunnel.linux.enter import set_process_name
from ztunnel.worker import main
from ztunnel.worker.engine.driver import host
from ztunnel.worker.engine.loop import Loop

GC_THRESHOLDS = (50_000, 20, 50)
"""As in a whole agent: connections are freed by reference counts, and a collection stops every byte."""
NOT_OURS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(number: int, leash: socket.socket, settings: Settings, set_log_filter: Callable[[str], None]) -> None:
    """Serve until the leash ends."""
    set_process_name(f"ztunnel-w{number}")
    for each in NOT_OURS:
        signal.signal(each, signal.SIG_IGN)
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    loop = Loop()
    with leash:
        host(loop, partial(main.serve, _links(leash), settings, loop, set_log_filter=set_log_filter))


async def _links(leash: socket.socket) -> AsyncIterator[Channel[Up, Down]]:
    async for each in handed(leash):
        link = worker_end(each.sock)
        try:
            yield link
        finally:
            link.close()
