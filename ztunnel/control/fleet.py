"""The workers as the control half sees them: to all, to a pod's own one, and questions with their answers.

Owns the control ends of the links and which worker has which pod. Must not know what messages mean beyond that; what
workers report goes to `hear`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

import trio

from ztunnel.core.errors import PlatformError
from ztunnel.link.channel import Channel, ChannelClosed
from ztunnel.link.messages import Answer, Ask, Down, Drain, Drained, PodAdded, PodRemoved, Question, Up

ASK_TIMEOUT = 2.0
"""Seconds for a worker to answer a question."""
DRAIN_GRACE = 2.0
"""Seconds beyond a drain's deadline for the worker to say that it is over."""

log = logging.getLogger("ztunnel.control")

Hear = Callable[[int, Up], None]


class Fleet:
    def __init__(self, links: Sequence[Channel[Down, Up]]) -> None:
        self._links = dict(enumerate(links))
        self._owners: dict[str, int] = {}
        self._questions: dict[int, dict[int, Any]] = {}
        """Question id to the answers so far, by worker."""
        self._asked = 0
        self._drained: set[int] = set()
        self._closing = False
        self._news = trio.lowlevel.ParkingLot()
        self.cut = 0
        """Connections that drains had to close."""

    @property
    def lost_flows(self) -> int:
        return sum(link.lost_flows for link in self._links.values())

    @property
    def is_connected(self) -> bool:
        return bool(self._links)

    async def listen(self, hear: Hear) -> None:
        """Hand every report to `hear`, until `close` and everything that was sent before it.

        Cannot be cancelled, so that what is reported while everything ends is heard too. Raises PlatformError when a
        worker ends before `close`.
        """
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                for number, link in list(self._links.items()):
                    nursery.start_soon(self._listen_to, number, link, hear)

    def broadcast(self, message: Down) -> None:
        """To every worker that is left."""
        for link in self._links.values():
            with contextlib.suppress(ChannelClosed):  # its listener finds out and says so
                link.send(message)

    def send(self, message: Down) -> None:
        """To the worker of the pod that the message is about, else to all."""
        if isinstance(message, PodAdded) and self._links:
            loads = {number: list(self._owners.values()).count(number) for number in self._links}
            self._owners[message.uid] = min(loads, key=lambda number: loads[number])
        if not isinstance(message, PodAdded | PodRemoved):
            self.broadcast(message)
            return
        link = self._links.get(self._owners.get(message.uid, -1))
        if link is not None:
            with contextlib.suppress(ChannelClosed):
                link.send(message)
        if isinstance(message, PodRemoved):
            self._owners.pop(message.uid, None)

    async def ask(self, question: Question) -> dict[int, Any]:
        """Each worker's answer, without those that do not answer in time."""
        self._asked += 1
        number = self._asked
        answers = self._questions[number] = {}
        try:
            self.broadcast(Ask(number, question))
            with trio.move_on_after(ASK_TIMEOUT):
                while self._links.keys() - answers.keys():
                    await self._news.park()
        finally:
            del self._questions[number]
        if missing := self._links.keys() - answers.keys():
            log.warning("no answer about %s from worker %s", question.value, ", ".join(map(str, sorted(missing))))
        return answers

    async def drain(self, seconds: float) -> None:
        """Returns when no worker has anything open; `seconds` is what connections get to finish.

        May be called again, with less, while it waits.
        """
        self.broadcast(Drain(seconds))
        with trio.move_on_after(seconds + DRAIN_GRACE):
            while self._links.keys() - self._drained:
                await self._news.park()

    def close(self) -> None:
        """The links end; what was reported until now is still heard."""
        self._closing = True
        for link in self._links.values():
            link.close()

    async def _listen_to(self, number: int, link: Channel[Down, Up], hear: Hear) -> None:
        async for message in link:
            if isinstance(message, Answer):
                if message.id in self._questions:
                    self._questions[message.id][number] = message.body
                    self._news.unpark_all()
            elif isinstance(message, Drained):
                self._drained.add(number)
                self.cut += message.cut
                self._news.unpark_all()
            else:
                hear(number, message)
        del self._links[number]
        self._news.unpark_all()
        if not self._closing:
            raise PlatformError(f"worker {number} has ended by itself", hint="its log says why")
