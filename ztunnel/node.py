"""The agent in one process: the control half and a worker, joined by a link in memory, under one supervisor.

Owns the process's end: signals, and that a crash of either half is the end of both, with a message that says which.
"""

from __future__ import annotations

import gc
import logging
from functools import partial

from ztunnel.config.settings import Settings
from ztunnel.control import main as control
from ztunnel.link.channel import Channel, memory_link
from ztunnel.link.messages import Down, Up
from ztunnel.observe.logs import Logs
from ztunnel.runtime.drain import Drain
from ztunnel.runtime.ready import Ready
from ztunnel.runtime.signals import stop_on_signals
from ztunnel.runtime.supervise import open_supervisor
from ztunnel.worker import main as worker
from ztunnel.worker.engine.driver import host
from ztunnel.worker.engine.loop import Loop

GC_THRESHOLDS = (50_000, 20, 50)
"""Allocations before a collection of each generation. Connections are freed by reference counts, so there is little to
collect; a full collection costs 30 ms with what an agent has after its start (90,000 objects) until that is frozen."""

log = logging.getLogger("ztunnel.node")


def serve(settings: Settings, logs: Logs) -> None:
    """`run` as the whole process, with the engine's loop as its main loop."""
    loop = Loop()
    host(loop, partial(run, settings, logs, loop=loop))


async def run(settings: Settings, logs: Logs, *, drain: Drain | None = None, loop: Loop | None = None) -> None:
    """Serve until told to stop (SIGTERM, SIGINT, quitquitquit) and drained.

    Raises ConfigError or PlatformError when the agent cannot start as it is set up. `drain` is for those who stop it
    from inside the process; signals are caught all the same. `loop` is the host of this trio run, if it has one.
    """
    drain = drain or Drain()
    ready = Ready()
    down, up = memory_link()
    async with open_supervisor() as tasks:
        await tasks.start("signals", stop_on_signals, drain, settings.drain_deadline)
        tasks.spawn("worker", _run_worker, up, settings, loop)
        tasks.spawn("calm memory", _calm_memory, ready)
        await _run_control(down, settings, drain, ready, logs)
        tasks.stop()


async def _run_control(link: Channel[Down, Up], settings: Settings, drain: Drain, ready: Ready, logs: Logs) -> None:
    await control.run([link], settings, drain=drain, ready=ready, logs=logs)


async def _run_worker(link: Channel[Up, Down], settings: Settings, loop: Loop | None) -> None:
    """The link ends with the worker, so that the control half does not wait for answers of a dead one."""
    try:
        await worker.run(link, settings, loop)
    finally:
        link.close()


async def _calm_memory(ready: Ready) -> None:
    """What is there once the agent is ready stays for ever: keep the garbage collector from looking at it again."""
    await ready.wait_ready()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    log.debug("garbage collector: %d objects frozen", gc.get_freeze_count())
