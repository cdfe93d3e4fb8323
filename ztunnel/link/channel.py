"""Channels: how messages cross the seam, in order, one stream each way.

Owns the queues between the halves and what happens when one is slow or gone. Knows nothing of what a message
means, except that finished connections (`Flows`) are history: when the control half cannot keep up, they are the
only thing that is dropped, and they are counted. Everything else is either state or an answer, and never lost.

`send` never blocks, because a worker sends from the middle of moving bytes. All calls are made on the trio
thread. Another carrier (a Unix socket between processes) is another subclass of `Channel`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

import trio

from ztunnel.link.messages import Down, Flows, Up

Out = TypeVar("Out")
In = TypeVar("In")
T = TypeVar("T")

MAX_QUEUED_FLOWS = 50_000
"""About 50 MB of finished connections; at 10 000 a second the control half may sleep for five seconds."""


class ChannelClosed(Exception):
    """The other half is gone, or this end was closed."""


class VersionMismatch(ChannelClosed):
    """The other half is of a release whose messages are others."""


class Channel(ABC, Generic[Out, In]):
    """One end of a link: sends `Out`, receives `In`; one task at a time receives.

    Iterating gives message after message until the link is closed, and raises VersionMismatch.
    """

    @abstractmethod
    def send(self, message: Out) -> None:
        """Queues `message`; raises ChannelClosed when nobody is left to read it."""

    @abstractmethod
    async def receive(self) -> In:
        """The next message; raises ChannelClosed after the last one when the other end was closed."""

    @abstractmethod
    def close(self) -> None:
        """Ends both directions. What was sent before still arrives; closing twice is harmless."""

    @property
    @abstractmethod
    def lost_flows(self) -> int:
        """Finished connections that were dropped on this link because the control half was too slow."""

    def __aiter__(self) -> Channel[Out, In]:
        return self

    async def __anext__(self) -> In:
        try:
            return await self.receive()
        except VersionMismatch:
            raise
        except ChannelClosed:
            raise StopAsyncIteration from None


def memory_link(max_queued_flows: int = MAX_QUEUED_FLOWS) -> tuple[Channel[Down, Up], Channel[Up, Down]]:
    """A link inside one process: the control half's end and the worker's end."""
    down: _Lane[Down] = _Lane(weight=lambda message: 0, limit=0)
    up: _Lane[Up] = _Lane(weight=flow_count, limit=max_queued_flows)
    return _MemoryChannel(down, up, up), _MemoryChannel(up, down, up)


def flow_count(message: object) -> int:
    """What a message counts towards the bound of queued flows."""
    return len(message.flows) if isinstance(message, Flows) else 0


class _Lane(Generic[T]):
    """A queue in one direction. Messages of weight 0 are always kept; heavier ones only up to `limit` in all."""

    def __init__(self, weight: Callable[[T], int], limit: int) -> None:
        self.closed = False
        self.dropped = 0
        self._weight = weight
        self._limit = limit
        self._queued = 0
        self._messages: deque[tuple[T, int]] = deque()
        self._readers = trio.lowlevel.ParkingLot()

    def put(self, message: T) -> None:
        if self.closed:
            raise ChannelClosed("the other half of the link is gone")
        weight = self._weight(message)
        if weight and self._queued + weight > self._limit:
            self.dropped += weight
            return
        self._queued += weight
        self._messages.append((message, weight))
        self._readers.unpark()

    async def get(self) -> T:
        if self._messages:
            await trio.lowlevel.checkpoint()
        while not self._messages:
            if self.closed:
                raise ChannelClosed("the other half of the link is gone")
            await self._readers.park()
        message, weight = self._messages.popleft()
        self._queued -= weight
        return message

    def close(self) -> None:
        self.closed = True
        self._readers.unpark_all()


class _MemoryChannel(Channel[Out, In]):
    def __init__(self, outgoing: _Lane[Out], incoming: _Lane[In], up: _Lane[Up]) -> None:
        self._outgoing = outgoing
        self._incoming = incoming
        self._up = up

    def send(self, message: Out) -> None:
        self._outgoing.put(message)

    async def receive(self) -> In:
        return await self._incoming.get()

    def close(self) -> None:
        self._outgoing.close()
        self._incoming.close()

    @property
    def lost_flows(self) -> int:
        return self._up.dropped
