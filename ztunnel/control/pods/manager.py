"""The life of every pod that the agent serves: one task each.

Theory of operation. A pod's task opens its network namespace, has capture rules installed, tells the worker to open
the listeners (PodAdded, answered by PodReady or PodFailed), has the capture proven by a probe, and then sleeps until
the namespace vanishes or nobody wants the pod any more, but for a probe now and then: rules that somebody took out are
put back. Whatever goes wrong is tried again every few seconds.

Rules come first and go last: as long as a pod is to be served and is not, its connections are refused. They never
travel in plain text because of a listener that is missing. For the same reason rules stay while the agent drains,
and are removed as the last thing before the process ends: new connections of those seconds fail instead of silently
losing mTLS. An end without that (kill -9) leaves rules, which the next start takes over and `ztunnel redirect remove`
removes.

A pod that goes leaves nothing behind: listeners and connections are closed by the worker (PodRemoved, PodGone), then
the rules are removed, then our descriptor of its namespace is closed, so that the kernel can let it go.

A worker that ends takes its listeners with it, and nothing else: the pod is opened again in the next worker at once,
under the rules that are still there. A control half that ends takes nothing with it: the next one is told by the
workers what they serve (`adopt`), and goes on from there.

Must not know how rules look (`Capture` does) nor how messages travel.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import socket
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple, Protocol

import trio

from ztunnel.control.pods.entry import Answer, Entry
from ztunnel.control.pods.pod import Origin, PodSpec
from ztunnel.core.errors import ConfigError, PlatformError, ZtunnelError
from ztunnel.core.model.capture import CaptureMode
from ztunnel.link.messages import Down, PodFailed, PodGone, PodRemoved
from ztunnel.linux.netns import NAMED, netns_id, open_netns
from ztunnel.runtime.ready import Guard, Ready

RETRY = 5.0
"""Seconds between two attempts (ztunnel: 5 s)."""
POLL = 1.0
"""Seconds between two looks whether the namespaces are still there."""
REPROVE = 15.0
"""Seconds between two proofs that a pod which is up is still captured; each is one connection inside the pod."""
ANSWER_TIMEOUT = 10.0
"""For the worker to open or close the listeners of one pod."""
TAKE_DOWN_TIMEOUT = 20.0
"""For everything that has to be undone for one pod."""

log = logging.getLogger("ztunnel.control.pods")


class Capture(Protocol):
    """Rules of one pod; `netns` None is the agent's own namespace. All raise PlatformError or ConfigError."""

    async def install(self, pod: PodSpec, netns: int | None) -> None:
        """Twice is the same as once."""

    async def prove(self, pod: PodSpec, netns: int | None) -> None:
        """A connection from inside must arrive at the worker's listener."""

    async def remove(self, pod: PodSpec, netns: int | None) -> None:
        """Nothing of ours is left; nothing happens where nothing is."""


class PodStatus(NamedTuple):
    spec: PodSpec
    origin: Origin
    up: bool
    why: str
    """Why it is not up; empty when it is or was not tried yet."""


class PodManager:
    """`run` it in a nursery; `send` takes messages for the worker and must not block.

    `equip` comes last before a pod is up; `on_gone` hears of every one that is over. Where `leaves` says so, those that
    are wanted when `run` is cancelled stay: the worker and the rules go on without us, for the next control half.
    """

    def __init__(
        self,
        send: Callable[[Down], None],
        capture: Capture,
        *,
        equip: Callable[[PodSpec], Awaitable[None]] | None = None,
        on_gone: Callable[[PodSpec], None] = lambda pod: None,
        leaves: Callable[[], bool] = lambda: False,
        retry: float = RETRY,
        poll: float = POLL,
        reprove: float = REPROVE,
    ) -> None:
        self._send = send
        self._capture = capture
        self._equip = equip
        self._on_gone = on_gone
        self._leaves = leaves
        self._retry = retry
        self._poll = poll
        self._reprove = reprove
        self._entries: dict[str, Entry] = {}
        self._talking: dict[str, Entry] = {}
        """Who hears what the worker says of a uid: never two, even where one pod follows another."""
        self._connected = True
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; ends when everything is taken down."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._watch_namespaces)
            task_status.started()

    def statuses(self) -> list[PodStatus]:
        """By uid."""
        return [
            PodStatus(entry.spec, entry.origin, entry.up, "" if entry.error is None else str(entry.error))
            for _, entry in sorted(self._entries.items())
        ]

    def serves(self, namespace: str, service_account: str) -> bool:
        """Whether any pod has this identity."""
        return any(
            entry.spec.namespace == namespace and entry.spec.service_account == service_account
            for entry in self._entries.values()
        )

    def heard(self, message: Answer) -> None:
        """What the worker said of a pod."""
        entry = self._talking.get(message.uid)
        if entry is not None:
            entry.answers.send_nowait(message)

    def lost(self, uids: Iterable[str]) -> None:
        """The worker of these pods has ended; another one is on its way."""
        for uid in uids:
            entry = self._talking.pop(uid, None)
            if entry is not None:
                entry.lose()

    def adopt(self, spec: PodSpec, origin: Origin) -> None:
        """A worker serves this pod already, by the word of an earlier control half."""
        if spec.uid not in self._entries:
            self._start(spec, origin, None).in_worker = True

    def stop_proving(self) -> None:
        """From now on listeners take nothing new, so that a probe would tell nothing."""
        self._reprove = math.inf

    def disconnect(self) -> None:
        """The worker has ended, and its listeners with it: nobody answers any more."""
        self._connected = False
        for entry in self._talking.values():
            entry.answers.close()
        self._talking.clear()

    def replace(self, origin: Origin, specs: Iterable[PodSpec], ready: Ready | None = None) -> None:
        """Exactly these pods of that origin from now on; returns before they are up.

        With `ready`, new ones keep the agent from being ready until they were up once.
        """
        wanted = {spec.uid: spec for spec in specs}
        for uid, entry in list(self._entries.items()):
            if entry.origin is origin and uid not in wanted:
                log.info("pod %s is not wanted any more", entry.spec)
                entry.scope.cancel()
        for spec in wanted.values():
            present = self._entries.get(spec.uid)
            if present is None or present.spec != spec or present.scope.cancel_called:
                self._start(spec, origin, ready.guard(f"pod {spec}") if ready else None)

    async def enroll(self, spec: PodSpec) -> None:
        """Returns when the pod is up; the same pod twice is once.

        Raises the reason when the first attempt fails: then nothing is left of it.
        """
        present = self._entries.get(spec.uid)
        if present is None or present.scope.cancel_called:
            present = self._start(spec, Origin.ENROLLED, None)
        elif present.spec != spec:
            raise ConfigError(
                f"pod {spec.uid} is already served ({present.origin.value}), with other values",
                hint="`ztunnel unenroll` it first, or give another uid",
            )
        await present.settled.wait()
        if not present.up:
            raise present.error or PlatformError(f"pod {spec} went while it was enrolled")

    async def unenroll(self, uid: str) -> None:
        """Returns when nothing is left of the pod. Raises ConfigError when it is not an enrolled one."""
        entry = self._entries.get(uid)
        if entry is None:
            raise ConfigError(f"pod {uid} is not served here", hint="`ztunnel enroll --list` shows those that are")
        if entry.origin is not Origin.ENROLLED:
            raise ConfigError(
                f"pod {uid} was not enrolled: it comes from {_OWNERS[entry.origin]}",
                hint=f"change {_OWNERS[entry.origin]}",
            )
        entry.scope.cancel()
        await entry.over.wait()

    def _start(self, spec: PodSpec, origin: Origin, guard: Guard | None) -> Entry:
        assert self._nursery is not None, "pods are added while `run` runs"
        before = self._entries.get(spec.uid)
        entry = self._entries[spec.uid] = Entry(spec, origin, guard)
        self._nursery.start_soon(self._keep, entry, before, name=f"pod {spec}")
        return entry

    async def _keep(self, entry: Entry, before: Entry | None) -> None:
        """The whole life of a pod, after that of its predecessor with the same uid."""
        try:
            with entry.scope:
                if before is not None:
                    before.scope.cancel()
                    with trio.CancelScope(shield=True):  # or a successor would come before it has ended
                        await before.over.wait()
                await self._repeat(entry)
        finally:
            if self._entries.get(entry.spec.uid) is entry:
                del self._entries[entry.spec.uid]
            entry.up = False
            entry.release()
            entry.settled.set()
            entry.over.set()
            if not self._is_left(entry):
                if entry.in_worker and self._connected:  # adopted, and never opened again
                    self._send(PodRemoved(entry.spec.uid))
                self._on_gone(entry.spec)

    def _is_left(self, entry: Entry) -> bool:
        """Whether the pod stays as it is, because we end and it should not."""
        ending = trio.current_effective_deadline() == -math.inf and not entry.scope.cancel_called
        return ending and self._leaves()

    async def _repeat(self, entry: Entry) -> None:
        """One life of the namespace after the other, as long as somebody wants the pod."""
        while True:
            entry.renew()
            try:
                await self._live(entry)
                log.info("pod %s: its network namespace is gone", entry.spec)
                entry.error = PlatformError(f"{entry.spec.netns or entry.spec.interface} is gone")
            except ZtunnelError as error:
                self._failed(entry, error)
            if entry.origin is Origin.ENROLLED:
                return
            await trio.sleep(self._retry)

    async def _live(self, entry: Entry) -> None:
        """One life of the pod's namespace: returns when it has vanished. What was installed in it goes at the end."""
        spec = entry.spec
        netns = await trio.to_thread.run_sync(open_netns, spec.netns) if spec.netns else None
        try:
            self._claim(entry, netns)
            try:
                while not entry.vanished.is_set():
                    try:
                        await self._serve(entry, netns)
                    except ZtunnelError as error:
                        if entry.origin is Origin.ENROLLED and not entry.settled.is_set():
                            raise
                        self._failed(entry, error)
                        with trio.move_on_after(self._retry):
                            await entry.vanished.wait()
            finally:
                await self._uncapture(entry, netns)
        finally:
            if netns is not None:
                os.close(netns)

    def _claim(self, entry: Entry, netns: int | None) -> None:
        """A namespace has one set of listeners. NODE pods share the node's, by their addresses."""
        if entry.spec.capture is CaptureMode.NODE:
            return
        entry.netns = netns_id(netns)
        for other in self._entries.values():
            if other is not entry and other.netns == entry.netns and not other.over.is_set():
                entry.netns = None
                raise ConfigError(
                    f"pod {entry.spec}: its network namespace is already that of pod {other.spec}",
                    hint="a namespace is one pod's; unenroll the other first",
                )

    async def _serve(self, entry: Entry, netns: int | None) -> None:
        """Keep the pod up until its namespace has vanished, in one worker after the other. The rules stay."""
        await self._capture.install(entry.spec, netns)
        while True:
            with entry.served():
                await self._serve_in_one_worker(entry, netns)
            if not entry.is_lost:
                return
            log.info("pod %s: its worker has ended; it is opened again", entry.spec)

    async def _serve_in_one_worker(self, entry: Entry, netns: int | None) -> None:
        """Bring the pod up and wait until its namespace has vanished. The listeners go at the end."""
        await self._open(entry, netns)
        try:
            await self._capture.prove(entry.spec, netns)
            if self._equip is not None:
                await self._equip(entry.spec)
            entry.up, entry.error = True, None
            entry.release()
            entry.settled.set()
            log.info("pod %s is up, capture mode %s", entry.spec, entry.spec.capture.value)
            await self._keep_captured(entry, netns)
        finally:
            entry.up = False
            await self._close(entry)

    async def _keep_captured(self, entry: Entry, netns: int | None) -> None:
        """Until the namespace has vanished. Rules that somebody else took out (`nft flush ruleset`) are put back.

        Connections stay as they are: a probe that fails is no reason to cut them.
        """
        while True:
            with trio.move_on_after(self._reprove):
                await entry.vanished.wait()
                return
            if math.isinf(self._reprove):
                continue
            try:
                await self._capture.prove(entry.spec, netns)
                entry.error = None
            except ZtunnelError as error:
                log.warning("%s; the rules are installed again", error)
                await self._capture_again(entry, netns)

    async def _capture_again(self, entry: Entry, netns: int | None) -> None:
        try:
            await self._capture.install(entry.spec, netns)
            await self._capture.prove(entry.spec, netns)
        except ZtunnelError as error:
            entry.error = error
            log.error("pod %s is not captured: %s%s", entry.spec, error, f" ({error.hint})" if error.hint else "")
        else:
            entry.error = None
            log.info("pod %s is captured again", entry.spec)

    async def _open(self, entry: Entry, netns: int | None) -> None:
        """Open the listeners, or leave none."""
        self._talking[entry.spec.uid] = entry
        entry.in_worker = True
        self._send(entry.spec.added(None if netns is None else os.dup(netns), entry.origin))
        try:
            with trio.fail_after(ANSWER_TIMEOUT):
                answer = await entry.hear()
        except trio.TooSlowError:
            await self._close(entry)
            raise PlatformError(f"pod {entry.spec}: its listeners were not open within {ANSWER_TIMEOUT:g} s") from None
        except trio.EndOfChannel:
            raise PlatformError(f"pod {entry.spec}: the worker has ended") from None
        except BaseException:
            await self._close(entry)
            raise
        if isinstance(answer, PodFailed):
            self._talking.pop(entry.spec.uid)
            entry.in_worker = False
            raise PlatformError(f"pod {entry.spec}: {answer.why}")

    async def _close(self, entry: Entry) -> None:
        """Close the listeners and connections, and wait for it even when cancelled."""
        if self._connected and not entry.is_lost and not self._is_left(entry):
            with trio.move_on_after(ANSWER_TIMEOUT) as limit:
                limit.shield = True
                entry.in_worker = False
                self._send(PodRemoved(entry.spec.uid))
                try:
                    while not isinstance(await entry.hear(), PodGone):
                        pass
                except trio.EndOfChannel:
                    pass
            if limit.cancelled_caught:
                log.error("pod %s: the worker did not close its listeners within %g s", entry.spec, ANSWER_TIMEOUT)
        if self._talking.get(entry.spec.uid) is entry:
            del self._talking[entry.spec.uid]

    async def _uncapture(self, entry: Entry, netns: int | None) -> None:
        if self._is_left(entry):
            return
        spec = entry.spec
        with trio.move_on_after(TAKE_DOWN_TIMEOUT) as limit:
            limit.shield = True
            try:
                await self._capture.remove(spec, netns)
            except ZtunnelError as error:
                log.error("pod %s: its capture rules could not be removed: %s", spec, error)
        if limit.cancelled_caught:
            log.error("pod %s: its capture rules were not removed within %g s", spec, TAKE_DOWN_TIMEOUT)

    def _failed(self, entry: Entry, error: ZtunnelError) -> None:
        """Say it once, not every few seconds."""
        if entry.error is None or str(entry.error) != str(error):
            again = "" if entry.origin is Origin.ENROLLED else f"; tried again every {self._retry:g} s"
            log.error(
                "pod %s is not served: %s%s%s", entry.spec, error, f" ({error.hint})" if error.hint else "", again
            )
        entry.error = error

    async def _watch_namespaces(self) -> None:
        while True:
            await trio.sleep(self._poll)
            watched = [
                (entry.vanished, entry.spec, entry.netns)
                for entry in self._entries.values()
                if entry.netns is not None or entry.spec.interface
            ]
            if watched:
                for vanished in await trio.to_thread.run_sync(_find_vanished, watched):
                    vanished.set()


_OWNERS = {Origin.FILE: "the mesh file", Origin.DEDICATED: "PROXY_WORKLOAD_INFO"}
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESRCH)

Watched = tuple[trio.Event, PodSpec, tuple[int, int] | None]


def _find_vanished(watched: list[Watched]) -> list[trio.Event]:
    return [vanished for vanished, spec, identity in watched if not _is_there(spec, identity)]


def _is_there(spec: PodSpec, identity: tuple[int, int] | None) -> bool:
    """Whether the name still leads to the same namespace; for NODE mode, whether the interface is there."""
    if spec.capture is CaptureMode.NODE:
        try:
            socket.if_nametoindex(spec.interface)
        except OSError:
            return False
        return True
    if not spec.netns:
        return True
    try:
        status = os.stat(NAMED / spec.netns)
    except OSError as error:
        return error.errno not in _GONE
    return (status.st_dev, status.st_ino) == identity
