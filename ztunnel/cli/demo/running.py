"""Running demos on this machine, found by a directory each: where another shell learns how to enter a pod.

The directory (`ztunnel-demo-*` among the temporary files, only its owner may look inside) holds everything that a
demo writes: this record, mesh files, logs, the CA. It goes with the demo. What a demo that was killed left there is
removed by the next one.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from ztunnel.core.errors import ConfigError, PlatformError
from ztunnel.linux.enter import move_in

PREFIX = "ztunnel-demo-"
_RECORD = "running.json"


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """A demo as its process describes itself."""

    pid: int
    started: str
    """The kernel's start time of the process, which tells it from a later one with the same pid."""
    pid_namespace: str
    rootless: bool
    directory: str
    places: Mapping[str, str] = {}
    """Pods and nodes to the paths of their network namespaces."""

    @property
    def hosts(self) -> Path:
        return Path(self.directory, "hosts")

    def is_alive(self) -> bool:
        return _start_time(self.pid) == self.started


def make_directory() -> Path:
    """A directory for this demo, with its record in it."""
    directory = Path(tempfile.mkdtemp(prefix=PREFIX))
    write(directory, rootless=False, places={})
    return directory


def write(directory: Path, *, rootless: bool, places: Mapping[str, str]) -> None:
    pid = os.getpid()
    record = Running(
        pid=pid,
        started=_start_time(pid),
        pid_namespace=os.readlink("/proc/self/ns/pid"),
        rootless=rootless,
        directory=str(directory),
        places=places,
    )
    draft = directory / f"{_RECORD}.new"
    draft.write_bytes(msgspec.json.encode(record))
    draft.replace(directory / _RECORD)


def find() -> list[Running]:
    """Demos of this user that run, the newest first."""
    alive = [record for record in _records() if record.is_alive()]
    return sorted(alive, key=lambda record: int(record.started), reverse=True)


def sweep() -> None:
    """Remove the directories of this user's demos that were killed."""
    for record in _records():
        if not record.is_alive():
            shutil.rmtree(record.directory, ignore_errors=True)


def enter(place: str) -> None:
    """Move this process into a pod or a node of the newest demo.

    Raises ConfigError when there is no demo or no such place, PlatformError when it may not be entered.
    """
    demos = find()
    if not demos:
        raise ConfigError("no demo of this user is running", hint="start one in another shell: ztunnel demo")
    demo = demos[0]
    if place not in demo.places:
        known = ", ".join(demo.places) or "none yet"
        raise ConfigError(f"the demo has no pod or node {place!r}", hint=f"there are: {known}")
    try:
        network = os.open(demo.places[place], os.O_RDONLY | os.O_CLOEXEC)
        user = os.open(f"/proc/{demo.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC) if demo.rootless else None
    except OSError as error:
        raise PlatformError(
            f"cannot enter {place}: {error.strerror} ({error.filename})", hint="run as the user of the demo"
        ) from None
    move_in(network, user=user, hosts=demo.hosts)


def _records() -> Iterator[Running]:
    """Of this user and this pid namespace; whatever else is there is not ours to judge."""
    for directory in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            if directory.is_symlink() or directory.stat().st_uid != os.geteuid():
                continue
            record = msgspec.json.decode((directory / _RECORD).read_bytes(), type=Running)
        except (OSError, msgspec.MsgspecError):
            continue
        if record.directory == str(directory) and record.pid_namespace == os.readlink("/proc/self/ns/pid"):
            yield record


def _start_time(pid: int) -> str:
    """Field 22 of /proc/PID/stat (proc_pid_stat(5)), in clock ticks since boot; empty without such a process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return text.rpartition(")")[2].split()[19]
