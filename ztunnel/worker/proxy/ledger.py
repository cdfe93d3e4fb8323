"""What is told upwards about connections: edges once, openings and flows in batches.

Nothing is formatted or counted by label here; a connection costs a dictionary access when it opens and one small
value when it ends. Batches leave at most FLUSH_SECONDS after their first entry. While there is no control half they
stay, flows up to a bound, for the next one, which `introduce` tells what the numbers mean.
"""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Callable

from ztunnel.core.model.address import Address
from ztunnel.core.model.connection import Direction, Refusal
from ztunnel.core.model.flow import Edge, Flow
from ztunnel.link.channel import MAX_QUEUED_FLOWS
from ztunnel.link.messages import Counters, EdgeDefined, Flows, Up
from ztunnel.worker.engine.loop import Loop, Timer

FLUSH_SECONDS = 0.1
FLUSH_FLOWS = 512


class Ledger:
    """`send` gives False when nobody is there to hear it."""

    def __init__(self, loop: Loop, send: Callable[[Up], bool]) -> None:
        self._loop = loop
        self._send = send
        self._numbers: dict[Edge, int] = {}
        self._untold: list[EdgeDefined] = []
        self._opened: dict[int, int] = defaultdict(int)
        self._flows: list[Flow] = []
        self._timer: Timer | None = None
        self._ids = itertools.count(1)
        self._epoch = time.time() - time.monotonic()
        self.lost = 0
        """Flows beyond the bound while there was no control half."""

    def next_id(self) -> int:
        return next(self._ids)

    def number(self, edge: Edge) -> int:
        """The edge's number. A new one is told upwards before anything that uses it, with the next batch: to wake the
        control half now would be in the way of the very connection that is being set up."""
        number = self._numbers.get(edge)
        if number is None:
            number = self._numbers[edge] = len(self._numbers)
            self._untold.append(EdgeDefined(number, edge))
            self._arm()
        return number

    def introduce(self) -> None:
        """A control half is there, which knows of nothing: tell it every number, and what was kept for it."""
        self._untold = [EdgeDefined(number, edge) for edge, number in self._numbers.items()]
        self.flush()

    def opened(self, edge: int) -> None:
        self._opened[edge] += 1
        if self._timer is None:
            self._arm()

    def wall(self, monotonic: float) -> float:
        """Seconds since the epoch of a moment on the monotonic clock."""
        return self._epoch + monotonic

    def finished(self, flow: Flow) -> None:
        flows = self._flows
        count = len(flows) + 1
        if count > MAX_QUEUED_FLOWS:
            self.lost += 1
            return
        flows.append(flow)
        if not count % FLUSH_FLOWS:
            self.flush()
        elif self._timer is None:
            self._arm()

    def refused(
        self, direction: Direction, source: Address, destination: Address | None, refusal: Refusal, authority: str = ""
    ) -> None:
        """A connection that ended before its parties were known."""
        self.finished(
            Flow(
                id=self.next_id(),
                edge=-1,
                direction=direction,
                source=source,
                destination=destination,
                hbone_address=authority,
                started=self.wall(time.monotonic()),
                duration=0.0,
                flag=refusal.flag,
                error=refusal.why,
                why=refusal.why,
            )
        )

    def take_opened(self) -> dict[int, int]:
        """Openings since the last time, per edge."""
        opened, self._opened = dict(self._opened), defaultdict(int)
        return opened

    def flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        untold, self._untold = self._untold, []
        for defined in untold:
            self._send(defined)
        if self._opened and self._send(Counters(opened=dict(self._opened))):
            self._opened.clear()
        if self._flows and self._send(Flows(tuple(self._flows))):
            self._flows.clear()

    def _arm(self) -> None:
        self._timer = self._loop.call_later(FLUSH_SECONDS, self.flush)
