"""The local file as a source of mesh state: loaded at the start, watched, and reloaded when it changes.

Theory of operation. The file is watched by asking for its identity (device, inode, times, size) now and then: that
sees edits in place, renames over it and the symlink swaps of Kubernetes' ConfigMaps alike, and needs no kernel
facility that may be missing. A file that changed is read only once it has stayed the same for one more look: an
editor that writes in place would otherwise show us half a file, and half a file can be a valid one with fewer
policies. A file with any mistake is refused as a whole; the old state stays.

All file access happens in worker threads. What a reload costs beyond that is work of the loop's thread in short slices,
not of a thread beside it, which would take the interpreter for milliseconds whenever a byte waits for the kernel.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Awaitable, Callable, Iterator
from typing import NamedTuple

import trio

from ztunnel.config.settings import Settings
from ztunnel.control.mesh.diff import changes
from ztunnel.control.mesh.localfile import Mesh, Pod, parse
from ztunnel.control.mesh.reread import Rereader
from ztunnel.core.errors import ConfigError
from ztunnel.link.messages import CaptureMode, Down, Resync, StateSynced
from ztunnel.runtime.slices import at_once, in_slices

log = logging.getLogger("ztunnel.control.mesh")

POLL = 0.25
"""Seconds between two looks at the file; a change is in force after two to three of them."""
MAX_FILE = 256 * 1024 * 1024
"""Bytes of a mesh file; hundreds of thousands of workloads."""
SLICE = 64
"""Resources per StateSlice: about 0.2 ms of a worker's time."""
BREATH = 0.001
"""Seconds after a slice, so that those of a large change do not come to a worker without a pause."""

PAUSE = 0.001
"""Seconds between two slices of a reload. A message takes several turns, on both nodes, before the next one; without
pauses a long reload would keep a processor from everybody, or the thread from the bytes it carries as well."""

Send = Callable[[Down], None]
OnPods = Callable[[tuple[Pod, ...]], Awaitable[None]]
Stamp = tuple[int, int, int, int, int]


class Statistics(NamedTuple):
    """Reloads since the start; the first load is none."""

    reloads_ok: int
    reloads_failed: int


class LocalSource:
    """LOCAL_XDS_PATH or LOCAL_XDS of the settings; without either the mesh is empty and stays so."""

    def __init__(self, settings: Settings, *, poll: float = POLL) -> None:
        self._settings = settings
        self._path = settings.local_xds_path
        self._poll = poll
        self._capture = CaptureMode(settings.capture_mode)
        self._reader = Rereader(trust_domain=settings.trust_domain, capture=self._capture)
        self._stamp: Stamp | None = None
        self._ok = self._failed = 0
        self._loaded = self._announced = False
        self.mesh = Mesh()
        """What is in force."""
        self.problems: tuple[str, ...] = ()
        """Why the file as it is now was refused; empty when it is in force."""

    def statistics(self) -> Statistics:
        return Statistics(self._ok, self._failed)

    def load(self) -> Mesh:
        """The first load: blocks, so call it before the loop runs or in a thread. `run` does it where nobody did.

        Raises ConfigError with every problem.
        """
        text, name, self._stamp = self._read()
        if text or self._path:
            mesh = at_once(self._reader.read(text))
            self.mesh = self._parse(text, name) if mesh is None else mesh
        self._loaded = True
        return self.mesh

    async def run(self, send: Send, on_pods: OnPods) -> None:
        """Send the whole state and StateSynced, then every change of it, for ever.

        `on_pods` gets all pods, first and whenever they changed, after the state that they need has been sent.
        Raises ConfigError when the first load fails.
        """
        if not self._loaded:
            await trio.to_thread.run_sync(self.load)
        self._announced = True
        await self._announce(send, Mesh(), self.mesh)
        send(StateSynced())
        await on_pods(self.mesh.pods)
        if not self._path:
            await trio.sleep_forever()
        seen = self._stamp
        while True:
            await trio.sleep(self._poll)
            stamp = await trio.to_thread.run_sync(self._look)
            settled, seen = stamp == seen, stamp
            if settled and stamp != self._stamp:
                await self.reload_now(send, on_pods)

    def snapshot(self) -> Iterator[Down]:
        """The whole state, for a worker that comes later or that had it from somebody else.

        Before it is sent to all there is only the announcement that it will come; a worker that comes in the middle of
        that is told some of it twice.
        """
        yield Resync()
        if self._announced:
            yield from at_once(changes(Mesh(), self.mesh, SLICE))
            yield StateSynced()

    async def reload_now(self, send: Send, on_pods: OnPods) -> bool:
        """Read the file now and put it in force; False when it is refused (logged, counted, old state kept)."""
        before = await trio.to_thread.run_sync(self._look)
        try:
            text, name, self._stamp = await trio.to_thread.run_sync(self._read)
            mesh = await in_slices(self._reader.read(text), PAUSE)
            if mesh is None:
                mesh = await trio.to_thread.run_sync(self._parse, text, name)
        except ConfigError as error:
            self._stamp = before
            self._refuse(error)
            return False
        old, self.mesh, self.problems = self.mesh, mesh, ()
        self._ok += 1
        await self._announce(send, old, mesh)
        log.info(
            "reloaded %s: %d workloads, %d services, %d policies, %d pods",
            *(self._path, len(mesh.workloads), len(mesh.services), len(mesh.policies), len(mesh.pods)),
        )
        if mesh.pods != old.pods:
            await on_pods(mesh.pods)
        return True

    async def _announce(self, send: Send, old: Mesh, new: Mesh) -> None:
        for part in await in_slices(changes(old, new, SLICE), PAUSE):
            send(part)
            await trio.sleep(BREATH)

    def _refuse(self, error: ConfigError) -> None:
        self._failed += 1
        self.problems = error.problems
        log.error("%s; the old state stays in force", error)
        for problem in error.problems:
            log.error("%s", problem)

    def _look(self) -> Stamp | None:
        """The identity of the file now; None when there is none."""
        try:
            return _stamp(os.stat(self._path))
        except OSError:
            return None

    def _read(self) -> tuple[str, str, Stamp | None]:
        """The text, its name, and the file's identity if it is of a file."""
        if self._path:
            text, stamp = _read_file(self._path)
            return text, self._path, stamp
        return self._settings.local_xds, "LOCAL_XDS", None

    def _parse(self, text: str, name: str) -> Mesh:
        return parse(text, name, trust_domain=self._settings.trust_domain, capture=self._capture)


def _read_file(path: str) -> tuple[str, Stamp]:
    """Text and identity of the very same file, whatever is swapped into its place meanwhile."""
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                problem = f"{path}: is no regular file"
            elif status.st_size > MAX_FILE:
                problem = f"{path}: is larger than {MAX_FILE} bytes"
            else:
                return file.read(MAX_FILE).decode(), _stamp(status)
    except OSError as error:
        problem = f"{path}: cannot be read: {error.strerror}"
    except UnicodeDecodeError as error:
        problem = f"{path}: is not UTF-8 text (byte {error.start})"
    raise ConfigError(problem, problems=(problem,), hint="LOCAL_XDS_PATH names the mesh file")


def _without_waiting(path: str, flags: int) -> int:
    """Opens also a pipe that nobody writes to."""
    return os.open(path, flags | os.O_NONBLOCK)


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size
