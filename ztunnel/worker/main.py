"""The composition root of a worker: plays the messages of its link into listeners, state and certificates."""

from __future__ import annotations

import logging
import os
import random
import socket
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable

import trio

from ztunnel.config.settings import Settings
from ztunnel.core.errors import PlatformError
from ztunnel.core.model.capture import CaptureMode
from ztunnel.core.model.identity import Identity
from ztunnel.link.channel import Channel, ChannelClosed
from ztunnel.link.messages import (
    Answer,
    Ask,
    CertificateFailed,
    CertificateForgotten,
    CertificateIssued,
    Down,
    Drain,
    Drained,
    LogFilter,
    PodAdded,
    PodFailed,
    PodGone,
    PodReady,
    PodRemoved,
    Question,
    Resync,
    Serving,
    StateSlice,
    StateSynced,
    Up,
)
from ztunnel.worker.engine.driver import drive
from ztunnel.worker.engine.loop import Loop
from ztunnel.worker.proxy.certificates import Certificates
from ztunnel.worker.proxy.connections import Connections
from ztunnel.worker.proxy.kit import Kit
from ztunnel.worker.proxy.ledger import Ledger
from ztunnel.worker.proxy.pod import NodeListeners, Pod
from ztunnel.worker.proxy.recheck import Recheck
from ztunnel.worker.proxy.rehearsal import Rehearsal
from ztunnel.worker.proxy.siblings import LAST_WORD
from ztunnel.worker.state.store import Store

log = logging.getLogger("ztunnel.worker")


Siblings = AsyncIterable[tuple[int, socket.socket]]
"""Links to the other workers of the agent as they come and go, each with the other one's number."""


async def run(
    link: Channel[Up, Down], settings: Settings, loop: Loop | None = None, *, siblings: Siblings | None = None
) -> None:
    """A worker: plays `link`'s messages until Drain has been answered or the link closes.

    `loop` is the host of this trio run (`driver.host`); without one the worker makes its own and drives it, and leaves
    out the rehearsal.
    """
    await serve(_only(link), settings, loop, siblings=siblings)


async def _only(link: Channel[Up, Down]) -> AsyncIterator[Channel[Up, Down]]:
    yield link


async def serve(
    links: AsyncIterable[Channel[Up, Down]],
    settings: Settings,
    loop: Loop | None = None,
    *,
    siblings: Siblings | None = None,
    set_log_filter: Callable[[str], None] = lambda spec: None,
) -> None:
    """A worker that outlives its control halves: plays one link after the other, and serves on in between.

    Ends with `links`. Each control half is told what is served here, and tells in turn what there is (Resync).
    """
    hosted = loop is not None
    loop = loop or Loop()
    try:
        async with trio.open_nursery() as nursery:
            worker = Worker(loop, settings, nursery, set_log_filter, rehearses=hosted)
            if not hosted:
                nursery.start_soon(drive, loop)
            if siblings is not None:
                nursery.start_soon(worker.meet, siblings)
            try:
                async for link in links:
                    await worker.play(link)
            finally:
                worker.close()
                nursery.cancel_scope.cancel()
    finally:
        if not hosted:
            loop.shutdown()


class Worker:
    def __init__(
        self,
        loop: Loop,
        settings: Settings,
        nursery: trio.Nursery,
        set_log_filter: Callable[[str], None],
        *,
        rehearses: bool,
    ) -> None:
        self._link: Channel[Up, Down] | None = None
        """None while there is no control half."""
        self._set_log_filter = set_log_filter
        self._settings = settings
        self._nursery = nursery
        self._pods: dict[str, Pod] = {}
        self._synced = False
        self._draining = False
        self._rehearses = rehearses
        self._rehearsal: Rehearsal | None = None
        ledger = Ledger(loop, self._send)
        self._kit = Kit(
            loop=loop,
            settings=settings,
            store=Store(),
            certificates=Certificates(self._send, time.time),
            ledger=ledger,
            connections=Connections(),
            spawn=self._spawn,
            random=random.Random(),
        )
        self._shared = NodeListeners(self._kit)
        self._recheck = Recheck(self._kit)

    def _send(self, message: Up) -> bool:
        """False when nobody hears it. The next control half is told everything that it needs to know."""
        if self._link is None:
            return False
        try:
            self._link.send(message)
        except ChannelClosed:
            self._link = None
            return False
        return True

    def _spawn(self, run: Callable[[], Awaitable[None]]) -> None:
        self._nursery.start_soon(run)

    async def play(self, link: Channel[Up, Down]) -> None:
        """Do what the link says until it ends; what is open stays open."""
        self._link = link
        self._send(Serving(tuple(pod.told() for pod in self._pods.values())))
        self._kit.ledger.introduce()
        self._kit.certificates.want_again()
        async for message in link:
            self._take(message)
        self._link = None

    async def meet(self, siblings: Siblings) -> None:
        async for number, sock in siblings:
            self._kit.joins.meet(self._kit, number, sock)

    def _take(self, message: Down) -> None:
        match message:
            case StateSlice():
                self._apply(message)
            case PodAdded():
                self._add_pod(message)
            case PodRemoved():
                self._remove_pod(message)
            case Resync():
                self._kit.store.begin_resync()
            case StateSynced():
                self._state_is_full()
            case CertificateIssued():
                self._kit.certificates.issued(message)
                self._rehearse(message.identity)
            case CertificateFailed():
                self._kit.certificates.failed(message)
            case CertificateForgotten():
                self._kit.certificates.forget(message.identity)
            case Ask():
                if self._kit.joins.lends:
                    self._nursery.start_soon(self._answer_later, message)
                else:
                    self._answer(message)
            case Drain():
                self._stop_accepting()
                self._nursery.start_soon(self._drain, message)
            case LogFilter():
                self._set_log_filter(message.spec)

    # ---- messages ----

    def _add_pod(self, message: PodAdded) -> None:
        present = self._pods.get(message.uid)
        if present is not None:
            if present.continues(message):
                self._send(PodReady(message.uid))
                return
            del self._pods[message.uid]
            present.close("the pod was replaced")
        shared = self._shared if message.capture is CaptureMode.NODE else None
        try:
            pod = Pod(self._kit, message, accepting=self._synced and not self._draining, shared=shared)
        except PlatformError as error:
            if message.netns_fd is not None:
                os.close(message.netns_fd)
            self._send(PodFailed(message.uid, f"{error}; {error.hint}" if error.hint else str(error)))
            return
        self._pods[message.uid] = pod
        self._send(PodReady(message.uid))

    def _rehearse(self, identity: Identity) -> None:
        """With the first certificate, once."""
        credentials = self._kit.certificates.get(identity)
        if self._rehearses and credentials is not None:
            self._rehearses = False
            self._rehearsal = Rehearsal(self._kit.loop, credentials, self._kit.tunnel_settings)
            self._rehearsal.begin()

    def _remove_pod(self, message: PodRemoved) -> None:
        pod = self._pods.pop(message.uid, None)
        if pod is not None:
            pod.close("the pod is gone")
        self._send(PodGone(message.uid))

    def _apply(self, message: StateSlice) -> None:
        self._kit.store.apply(message)
        self._recheck.changed(message)

    def _state_is_full(self) -> None:
        removed = self._kit.store.end_resync()
        if removed is not None:
            self._recheck.changed(removed)
        if not self._synced:
            self._synced = True
            for pod in self._pods.values():
                pod.accept()

    async def _answer_later(self, message: Ask) -> None:
        """Once the other workers have said how much they carried for us."""
        await self._kit.joins.refresh()
        self._answer(message)

    def _answer(self, message: Ask) -> None:
        kit = self._kit
        kit.ledger.flush()  # an answer may name what was not told yet
        if message.question is Question.CONNECTIONS:
            body: object = tuple(each.describe() for each in kit.connections.snapshot())
        elif message.question is Question.COUNTERS:
            body = kit.connections.counters(kit.ledger.take_opened())
        else:
            body = {
                "connections": len(kit.connections),
                "pods": len(self._pods),
                "tunnels": len(kit.keepalive),
                "certificates": len(kit.certificates),
                "state_revision": kit.store.revision,
                "flows_lost": kit.ledger.lost,
            }
        self._send(Answer(message.id, body))

    # ---- the end ----

    def _stop_accepting(self) -> None:
        self._draining = True
        for pod in self._pods.values():
            pod.drain()

    async def _drain(self, message: Drain) -> None:
        """Let connections finish until the deadline, then close them with a reason."""
        kit = self._kit
        with trio.move_on_after(message.deadline):
            await kit.connections.wait_empty()
        left = kit.connections.snapshot()
        for carried in left:
            carried.abort(f"closed at the drain deadline of {message.deadline:g} s")
        await trio.lowlevel.checkpoint()
        with trio.move_on_after(2 * LAST_WORD):  # other workers have the last word on what they carry for us
            await kit.connections.wait_empty()
        kit.ledger.flush()
        self._send(Drained(len(left)))

    def close(self) -> None:
        """Whatever is left, at once."""
        for pod in list(self._pods.values()):
            pod.close("the proxy stops")
        self._pods.clear()
        if self._rehearsal is not None:
            self._rehearsal.end()
        self._kit.joins.close()
        self._kit.keepalive.stop()
        self._kit.pipes.close()
