"""The agent: both halves in one process, joined by a link in memory, or as processes under one that stays.

In one process a crash of either half is the end of both, with a message that says which. As processes (WORKERS) each
half goes on when the other one ends; see `supervisor`. This module is what each of the processes does.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TextIO

import trio

from ztunnel import supervisor
from ztunnel.config.settings import Settings
from ztunnel.control import main as control
from ztunnel.control.fleet import Fleet
from ztunnel.link.channel import Channel, memory_link
from ztunnel.link.leash import handed, tell_up
from ztunnel.link.messages import Down, Up
from ztunnel.link.unix import control_end
from ztunnel.linux.enter import set_process_name
from ztunnel.observe.log_format import formatter
from ztunnel.observe.logs import Logs, install
from ztunnel.runtime.drain import Drain
from ztunnel.runtime.ready import Ready
from ztunnel.runtime.signals import stop_on_signals
from ztunnel.runtime.supervise import open_supervisor
from ztunnel.worker import main as worker
from ztunnel.worker import process
from ztunnel.worker.engine.driver import host
from ztunnel.worker.engine.loop import Loop

CONTROL_NICENESS = 5
"""Where cores are short the bytes go first: a large push then costs a paced stream a third of the delay. The control
half keeps a quarter of a core that a busy worker wants too."""

TAKE_DOWN = 30.0
"""Seconds beyond the drain's deadline for pods and rules to be taken down."""

log = logging.getLogger("ztunnel.node")


def serve(settings: Settings, logs: Logs) -> None:
    """The whole agent, until it ends. `logs` are those of this process; its children have their own.

    Raises ConfigError or PlatformError as `run`, and SystemExit where children ended the agent with a code.
    """
    role = supervisor.inherited_role()
    if role is None and settings.workers == 0:
        process.hurry()
        loop = Loop()
        host(loop, partial(run, settings, logs, loop=loop))
        return
    logs.close()  # its thread would not survive a fork
    if role is None:
        with _plain_logs(settings):
            result = supervisor.supervise(settings.workers, settings.drain_deadline + TAKE_DOWN)
        if isinstance(result, int):
            raise SystemExit(result)
        role = result
    logs = install(settings.rust_log, form=settings.log_format)
    try:
        if role.number == supervisor.CONTROL:
            set_process_name("ztunnel-ctl")
            os.nice(CONTROL_NICENESS)
            trio.run(_control_process, role, settings, logs)
        else:
            process.run(role.number, role.leash, settings, logs.replace)
    finally:
        logs.close()


class _Lossy(logging.StreamHandler[TextIO]):
    """What a full disk or a reader that has gone does not take is lost, as in every other process."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Nothing: the log's own complaint would go where nobody asked for it."""


@contextmanager
def _plain_logs(settings: Settings) -> Iterator[None]:
    """Logs of the supervisor: a few lines, without the thread that many would need."""
    handler = _Lossy(sys.stdout)
    handler.setFormatter(formatter(settings.log_format))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)


async def _control_process(role: supervisor.Role, settings: Settings, logs: Logs) -> None:
    """The control half as a process of its own: workers come to it over the leash."""
    drain, ready = Drain(), Ready()
    fleet = Fleet(places=role.workers)
    async with open_supervisor() as tasks:
        await tasks.start("signals", stop_on_signals, drain, settings.drain_deadline)
        tasks.spawn("handover", _hand_over, logs)
        tasks.spawn("arrivals", _attach_workers, fleet, role.leash)
        tasks.spawn("calm memory", _calm_memory, ready)
        await control.serve(
            fleet, settings, drain=drain, ready=ready, logs=logs, on_started=partial(tell_up, role.leash)
        )
        tasks.stop()
    role.leash.close()


async def _attach_workers(fleet: Fleet, leash: socket.socket) -> None:
    async for each in handed(leash):
        fleet.attach(each.number, control_end(each.sock))


async def _hand_over(logs: Logs) -> None:
    """At SIGHUP: go without taking anything down, for the next control half finds it all."""
    with trio.open_signal_receiver(signal.SIGHUP) as received:
        await anext(aiter(received))
    log.info("SIGHUP: the next control half takes over")
    logs.close()
    os._exit(supervisor.HANDED_OVER)


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
    gc.set_threshold(*process.GC_THRESHOLDS)
    log.debug("garbage collector: %d objects frozen", gc.get_freeze_count())
