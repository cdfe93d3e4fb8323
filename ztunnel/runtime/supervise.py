"""Named tasks that live as long as the agent does.

A task that fails takes all of them down: a half that is silently missing is worse than a restart. The failure is
logged once, with the task's name, and leaves `open_supervisor` as what it is: the exception groups of trio's
nurseries are unwrapped at this edge and nowhere else.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import trio

from ztunnel.core.errors import ZtunnelError

log = logging.getLogger("ztunnel.runtime.supervise")

Run = Callable[..., Awaitable[object]]


@asynccontextmanager
async def open_supervisor() -> AsyncIterator[Supervisor]:
    """Leaves when the body and all tasks have ended, or with the first failure of any of them."""
    try:
        async with trio.open_nursery() as nursery:
            yield Supervisor(nursery)
    except BaseExceptionGroup as group:
        cause = first_cause(group)
        if cause is None:
            raise
        raise cause from cause.__cause__


class Supervisor:
    """Starts named tasks in one nursery."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._alive: dict[object, str] = {}
        self._logged: list[BaseException] = []

    @property
    def alive(self) -> tuple[str, ...]:
        """Names of the tasks that run, in the order of their start."""
        return tuple(self._alive.values())

    def spawn(self, name: str, run: Run, *args: object) -> None:
        """Run `run(*args)`; it may end by itself."""
        self._nursery.start_soon(self._watch, name, run, args, name=name)

    async def start(self, name: str, run: Run, *args: object) -> Any:
        """Like `spawn`, but wait until the task called `task_status.started(value)`; gives the value.

        A failure before that is raised here (and logged, like any).
        """
        return await self._nursery.start(self._watch_started, name, run, args, name=name)

    def stop(self) -> None:
        """Cancel every task and the body."""
        self._nursery.cancel_scope.cancel()

    async def _watch(self, name: str, run: Run, args: tuple[object, ...], **keywords: object) -> None:
        token = object()
        self._alive[token] = name
        try:
            await run(*args, **keywords)
        except BaseException as error:
            self._log(name, error)
            raise
        finally:
            del self._alive[token]

    async def _watch_started(
        self, name: str, run: Run, args: tuple[object, ...], *, task_status: trio.TaskStatus[object]
    ) -> None:
        await self._watch(name, run, args, task_status=task_status)

    def _log(self, name: str, error: BaseException) -> None:
        for cause in causes(error):
            if any(cause is logged for logged in self._logged):
                continue
            self._logged.append(cause)
            if isinstance(cause, ZtunnelError):
                log.error("%s ended: %s", name, cause)
            else:
                log.critical("%s crashed: %s: %s", name, type(cause).__name__, cause, exc_info=cause)


def causes(error: BaseException) -> Iterator[BaseException]:
    """The errors inside groups, however deep, without cancellations."""
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from causes(part)
    elif not isinstance(error, trio.Cancelled):
        yield error


def first_cause(error: BaseException) -> BaseException | None:
    """The first of `causes`; None when there were only cancellations."""
    return next(causes(error), None)
