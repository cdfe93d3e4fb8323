"""Workers without a control half: the messages of a recorded start are played into them, nothing else.

async with open_worker(WorkerSettings...) as worker:
    worker.play(PodAdded(...), StateSlice(...), StateSynced(), mesh.leaf(...))
    await worker.heard(PodReady)
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import trio
from mesh_pki import MeshPki

from ztunnel.config.settings import Settings
from ztunnel.core.model.flow import Edge, Flow
from ztunnel.core.model.identity import Identity
from ztunnel.link.channel import Channel, ChannelClosed, memory_link
from ztunnel.link.messages import (
    Answer,
    Ask,
    CertificateWanted,
    Counters,
    Down,
    EdgeDefined,
    Flows,
    Question,
    Up,
)
from ztunnel.worker import main

M = TypeVar("M")


class PlayedWorker:
    """A worker and everything it said; certificates that it wants are issued by `pki` at once."""

    def __init__(self, link: Channel[Down, Up], pki: MeshPki) -> None:
        self._link = link
        self.issue: Callable[[Identity], Down | None] = pki.leaf
        """Answers a wanted certificate; None leaves it unanswered."""
        self._spoke = trio.Condition()
        self.said: list[Up] = []
        self.edges: dict[int, Edge] = {}
        self.flows: list[Flow] = []

    def play(self, *messages: Down) -> None:
        for message in messages:
            self._link.send(message)

    async def listen(self) -> None:
        async for message in self._link:
            if isinstance(message, CertificateWanted):
                answer = self.issue(message.identity)
                if answer is not None:
                    self.play(answer)
            elif isinstance(message, EdgeDefined):
                self.edges[message.number] = message.edge
            elif isinstance(message, Flows):
                self.flows.extend(message.flows)
            async with self._spoke:
                self.said.append(message)
                self._spoke.notify_all()

    async def heard(self, kind: type[M]) -> M:
        """The first message of this kind, also if it was said before."""
        async with self._spoke:
            while True:
                for message in self.said:
                    if isinstance(message, kind):
                        return message
                await self._spoke.wait()

    async def flow(self, count: int = 1) -> Flow:
        """The `count`th finished connection."""
        async with self._spoke:
            while len(self.flows) < count:
                await self._spoke.wait()
        return self.flows[count - 1]

    async def ask(self, question: Question) -> object:
        self.play(Ask(len(self.said) + 1000, question))
        number = len(self.said) + 1000
        async with self._spoke:
            while True:
                for message in self.said:
                    if isinstance(message, Answer) and message.id == number:
                        return message.body
                await self._spoke.wait()

    @property
    def opened(self) -> int:
        return sum(sum(each.opened.values()) for each in self.said if isinstance(each, Counters))


async def _each(siblings: Sequence[tuple[int, socket.socket]]) -> AsyncIterator[tuple[int, socket.socket]]:
    for sibling in siblings:
        yield sibling


@asynccontextmanager
async def open_worker(
    settings: Settings, pki: MeshPki, siblings: Sequence[tuple[int, socket.socket]] = ()
) -> AsyncIterator[PlayedWorker]:
    """`siblings` are links to other workers, by their numbers."""
    control_end, worker_end = memory_link()
    worker = PlayedWorker(control_end, pki)
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            try:
                await main.run(worker_end, settings, siblings=_each(siblings))
            except* ChannelClosed:
                pass

        nursery.start_soon(run)
        nursery.start_soon(worker.listen)
        try:
            yield worker
        finally:
            control_end.close()
