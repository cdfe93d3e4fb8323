"""The workers as the control half sees them: to all, to a pod's own one, and questions with their answers.

Owns the control ends of the links and which worker has which pod. Must not know what messages mean beyond that; what
workers report goes to `hear`.

A worker has a place, which stays when the worker is replaced: its pods belong there, and go to whoever comes next.
Orders for a place that is empty wait for it. New pods go where the fewest are; those captured in the node's own
namespace share listeners, and so a place.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import trio

from ztunnel.core.errors import PlatformError
from ztunnel.core.model.capture import CaptureMode
from ztunnel.link.channel import Channel, ChannelClosed, VersionMismatch
from ztunnel.link.messages import (
    Answer,
    Ask,
    Down,
    Drain,
    Drained,
    PodAdded,
    PodGone,
    PodRemoved,
    Question,
    Serving,
    Up,
)

ASK_TIMEOUT = 2.0
"""Seconds for a worker to answer a question."""
DRAIN_GRACE = 2.0
"""Seconds beyond a drain's deadline for the worker to say that it is over."""

log = logging.getLogger("ztunnel.control")

Link = Channel[Down, Up]
Hear = Callable[[int, Up], None]


class _Place:
    """Where a worker is, or will be."""

    def __init__(self) -> None:
        self.link: Link | None = None
        self.serving = False
        """The worker has said what it serves already: pods may be given to it."""
        self.drained = False
        self.waiting: dict[str, PodAdded] = {}
        self.turn = trio.Lock()
        """A link is read to its end before the next one of the place."""


class Fleet:
    """Workers of these links, whose end is an error; or, with `places`, processes that are replaced when they end."""

    def __init__(self, links: Sequence[Link] = (), *, places: int = 0) -> None:
        self._replaced = places > 0
        self._places = {number: _Place() for number in range(places)}
        self._owners: dict[str, int] = {}
        self._node_pods: set[str] = set()
        self._questions: dict[int, dict[int, Any]] = {}
        """Question id to the answers so far, by worker."""
        self._asked = 0
        self._lost_flows = 0
        self._drain_order: Drain | None = None
        self._news = trio.lowlevel.ParkingLot()
        self._hear: Hear = lambda number, message: None
        self._on_lost: Callable[[int, list[str]], None] = lambda number, uids: None
        self._arrivals: list[tuple[int, Link]] = []
        self._nursery: trio.Nursery | None = None
        self._closing = trio.Event()
        self.cut = 0
        """Connections that drains had to close."""
        for number, link in enumerate(links):
            self.attach(number, link)

    @property
    def lost_flows(self) -> int:
        return self._lost_flows + sum(link.lost_flows for link in self._links().values())

    @property
    def is_connected(self) -> bool:
        return self._replaced or bool(self._links())

    @property
    def is_replaced(self) -> bool:
        """Whether another worker takes the place of one that ends."""
        return self._replaced

    def _links(self) -> dict[int, Link]:
        return {number: place.link for number, place in self._places.items() if place.link is not None}

    # ---- workers come and go ----

    def attach(self, number: int, link: Link) -> None:
        """A worker has come to this place."""
        place = self._places.setdefault(number, _Place())
        if not self._replaced:
            place.link, place.serving = link, True
        if self._nursery is None:
            self._arrivals.append((number, link))
        else:
            self._nursery.start_soon(self._listen_to, number, link)

    async def listen(self, hear: Hear, on_lost: Callable[[int, list[str]], None] = lambda number, uids: None) -> None:
        """Hand every report to `hear`, until `close` and everything that was sent before it.

        `on_lost` is told of a worker that has ended, with the pods that it served. Cannot be cancelled, so that what
        is reported while everything ends is heard too. Raises PlatformError when a worker that is not replaced ends
        before `close`.
        """
        self._hear, self._on_lost = hear, on_lost
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                arrivals, self._arrivals = self._arrivals, []
                for number, link in arrivals:
                    nursery.start_soon(self._listen_to, number, link)
                if self._replaced:
                    await self._closing.wait()
                self._nursery = None

    async def wait_serving(self) -> None:
        """Until every place has a worker that said what it serves."""
        while not all(place.serving for place in self._places.values()):
            await self._news.park()

    async def _listen_to(self, number: int, link: Link) -> None:
        place = self._places[number]
        async with place.turn:
            place.link, place.drained = link, False
            if self._closing.is_set():
                link.close()
            elif self._drain_order is not None:
                self._tell(number, self._drain_order)
            with contextlib.suppress(VersionMismatch):  # such a worker ends by itself, for a newer one
                async for message in link:
                    self._take(number, place, message)
            place.link, place.serving = None, False
            self._lost_flows += link.lost_flows
            link.close()
            self._news.unpark_all()
            if not self._closing.is_set():
                self._lost(number, place)

    def _lost(self, number: int, place: _Place) -> None:
        if not self._replaced:
            raise PlatformError(f"worker {number} has ended by itself", hint="its log says why")
        pods = [uid for uid, owner in self._owners.items() if owner == number and uid not in place.waiting]
        log.error("worker %d has ended by itself; its %d pods are opened again in the next one", number, len(pods))
        self._on_lost(number, pods)

    def _take(self, number: int, place: _Place, message: Up) -> None:
        if isinstance(message, Answer):
            if message.id in self._questions:
                self._questions[message.id][number] = message.body
        elif isinstance(message, Drained):
            place.drained = True
            self.cut += message.cut
        elif isinstance(message, Serving):
            self._serves(number, place, message)
        else:
            self._hear(number, message)
            return
        self._news.unpark_all()

    def _serves(self, number: int, place: _Place, message: Serving) -> None:
        """State before pods: a worker accepts connections once it knows the mesh."""
        for pod in message.pods:
            self._own(pod, number)
        self._hear(number, message)
        place.serving = True
        waiting, place.waiting = place.waiting, {}
        for order in waiting.values():
            self._tell(number, order)

    # ---- orders ----

    def broadcast(self, message: Down) -> None:
        """To every worker that is there."""
        for number in self._links():
            self._tell(number, message)

    def tell(self, number: int, message: Down) -> None:
        """To one worker, if it is there."""
        if self._places[number].link is not None:
            self._tell(number, message)

    def send(self, message: Down) -> None:
        """To the worker of the pod that the message is about, else to all."""
        if isinstance(message, PodAdded):
            self._give(message)
        elif isinstance(message, PodRemoved):
            self._take_away(message)
        else:
            self.broadcast(message)

    def _give(self, pod: PodAdded) -> None:
        number = self._owners.get(pod.uid, -1)
        if number not in self._places:
            if not self._places:
                _discard(pod)
                return
            number = self._choose(pod)
        self._own(pod, number)
        place = self._places[number]
        if place.serving:
            self._tell(number, pod)
        else:
            place.waiting[pod.uid] = pod

    def _choose(self, pod: PodAdded) -> int:
        if pod.capture is CaptureMode.NODE and self._node_pods:
            return self._owners[next(iter(self._node_pods))]
        loads = Counter(self._owners.values())
        return min(self._places, key=lambda number: loads[number])

    def _own(self, pod: PodAdded, number: int) -> None:
        self._owners[pod.uid] = number
        if pod.capture is CaptureMode.NODE:
            self._node_pods.add(pod.uid)

    def _take_away(self, message: PodRemoved) -> None:
        number = self._owners.pop(message.uid, None)
        self._node_pods.discard(message.uid)
        place = None if number is None else self._places.get(number)
        if number is None or place is None:
            return
        waiting = place.waiting.pop(message.uid, None)
        if waiting is not None:
            _discard(waiting)
        if waiting is None and place.link is not None:
            self._tell(number, message)
        else:
            self._hear(number, PodGone(message.uid))

    def _tell(self, number: int, message: Down) -> None:
        link = self._places[number].link
        assert link is not None
        with contextlib.suppress(ChannelClosed):  # its listener finds out and says so
            link.send(message)

    async def ask(self, question: Question) -> dict[int, Any]:
        """Each worker's answer, without those that do not answer in time."""
        self._asked += 1
        number = self._asked
        answers = self._questions[number] = {}
        try:
            self.broadcast(Ask(number, question))
            with trio.move_on_after(ASK_TIMEOUT):
                while self._links().keys() - answers.keys():
                    await self._news.park()
        finally:
            del self._questions[number]
        if missing := self._links().keys() - answers.keys():
            log.warning("no answer about %s from worker %s", question.value, ", ".join(map(str, sorted(missing))))
        return answers

    # ---- the end ----

    async def drain(self, seconds: float) -> None:
        """Returns when no worker has anything open; `seconds` is what connections get to finish.

        May be called again, with less, while it waits.
        """
        self._drain_order = Drain(seconds)
        self.broadcast(self._drain_order)
        with trio.move_on_after(seconds + DRAIN_GRACE):
            while any(place.link is not None and not place.drained for place in self._places.values()):
                await self._news.park()

    def close(self) -> None:
        """The links end; what was reported until now is still heard."""
        self._closing.set()
        for place in self._places.values():
            for pod in place.waiting.values():
                _discard(pod)
            place.waiting.clear()
            if place.link is not None:
                place.link.close()
        for _, link in self._arrivals:
            link.close()


def _discard(pod: PodAdded) -> None:
    """An order that nobody gets: its descriptor ends here."""
    if pod.netns_fd is not None:
        os.close(pod.netns_fd)
