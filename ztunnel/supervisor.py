"""The process that stays: starts the control half and the workers, replaces what ends, and ends them all.

Theory of operation. One thread, no trio, nothing but signals, children and their leashes: what has little to do has
little to fail at. Children are forked from here, early, so that they share the memory of what was imported.

`supervise` returns in every process: in a child with its Role, which then is that half of the agent, and in the
supervisor with the exit code, when all have ended. Every link between the halves is made here, because both come and
go: a worker that ends is replaced and linked to the control half, a control half that ends is replaced and linked to
all workers, which serve on meanwhile. Every two workers are linked too. After SIGHUP children are not forked any more
but started as new programs: that is how an upgrade comes into force, at first in the control half, which is replaced
at once.

A child never outlives the supervisor: the kernel kills it. Signals of a terminal reach only the supervisor.

Must not know what the halves do.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

from ztunnel.link.leash import hand, heard_up
from ztunnel.link.unix import socket_pair
from ztunnel.linux.enter import die_with_parent

HANDED_OVER = 75
"""Exit code of a control half that makes room for the next one (SIGHUP)."""
CRASHED = 1
LONG_LIFE = 5.0
"""Seconds after which an end is no sign of another one: the next child comes at once."""
FIRST_DELAY, LAST_DELAY = 0.05, 5.0
"""Seconds until the next child after a short life; doubles."""
FORCED_PATIENCE = 10.0
"""Seconds for the control half to end after a second SIGTERM."""
WORKER_PATIENCE = 3.0
"""Seconds for a worker to end once its leash is gone."""

_ROLE = "ZTUNNEL_ROLE"
"""How a new program is told what it is; not for operators."""
_STOP = (signal.SIGTERM, signal.SIGINT)
_ALL = (*_STOP, signal.SIGHUP, signal.SIGCHLD)

log = logging.getLogger("ztunnel.supervisor")


class Role(NamedTuple):
    """What a child is to be."""

    number: int
    """Of the worker; CONTROL is the control half."""
    workers: int
    """How many there are."""
    leash: socket.socket


CONTROL = -1


class _Born(BaseException):
    """Leaves the supervisor's code in a child."""

    def __init__(self, role: Role) -> None:
        self.role = role


class _Child:
    def __init__(self, number: int, pid: int, leash: socket.socket) -> None:
        self.number = number
        self.pid = pid
        self.leash = leash
        self.began = time.monotonic()
        self.up = False


def inherited_role() -> Role | None:
    """What this process was started to be by a supervisor of an earlier release; None for everybody else."""
    text = os.environ.pop(_ROLE, "")
    if not text:
        return None
    number, workers, fd = map(int, text.split(":"))
    os.set_inheritable(fd, False)
    return Role(number, workers, socket.socket(fileno=fd))


def supervise(workers: int, stop_seconds: float) -> Role | int:
    """Run the agent with so many workers; see the module. `stop_seconds` bounds an orderly end.

    The process must have one thread.
    """
    gc.collect()
    gc.freeze()
    supervisor = Supervisor(workers, stop_seconds)
    try:
        return supervisor.run()
    except _Born as born:
        return born.role


class Supervisor:
    def __init__(self, workers: int, stop_seconds: float) -> None:
        self._workers = workers
        self._stop_seconds = stop_seconds
        self._children: dict[int, _Child] = {}
        """By number."""
        self._due: dict[int, float] = {}
        """When the next child of a number is to be started."""
        self._short_lives: dict[int, int] = {}
        self._signals: list[int] = []
        self._new_programs = False
        self._ever_up = False
        self._stopping = False
        self._ending = False
        """The control half is over, and workers have been let go."""
        self._kill_at = float("inf")
        self._code = 0

    def run(self) -> int:
        with self._caught_signals() as wakeup:
            for number in (*range(self._workers), CONTROL):
                self._start(number)
            while self._children or self._due:
                self._wait(wakeup)
                self._obey_signals()
                self._reap()
                self._look_at_the_clock()
        return self._code

    # ---- waiting ----

    @contextlib.contextmanager
    def _caught_signals(self) -> Iterator[socket.socket]:
        reader, writer = socket.socketpair()
        with reader, writer:
            self._wakeup = (reader, writer)
            for end in self._wakeup:
                end.setblocking(False)
            signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
            for number in _ALL:
                signal.signal(number, lambda number, frame: self._signals.append(number))
            try:
                yield reader
            finally:
                signal.set_wakeup_fd(-1)
                for number in _ALL:
                    signal.signal(number, signal.SIG_DFL)

    def _wait(self, wakeup: socket.socket) -> None:
        times = [*self._due.values(), self._kill_at]
        seconds = max(0.0, min(times) - time.monotonic())
        control = self._children.get(CONTROL)
        unheard = [control.leash] if control is not None and not control.up else []
        ready, _, _ = select.select([wakeup, *unheard], [], [], None if seconds == float("inf") else seconds)
        if wakeup in ready:
            with contextlib.suppress(BlockingIOError):
                wakeup.recv(1024)
        if control is not None and control.leash in ready:
            self._ever_up |= heard_up(control.leash)
            control.up = True  # or gone: either way there is nothing more to hear

    def _obey_signals(self) -> None:
        while self._signals:
            number = self._signals.pop(0)
            if number in _STOP:
                self._stop(signal.Signals(number).name)
            elif number == signal.SIGHUP:
                self._upgrade()

    # ---- children ----

    def _start(self, number: int) -> None:
        """Fork; in the child this raises _Born."""
        self._due.pop(number, None)
        ours, theirs = socket_pair()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            ours.close()
            self._become_child(parent)
            role = Role(number, self._workers, theirs)
            if self._new_programs:
                _exec(role)
            raise _Born(role)
        theirs.close()
        child = self._children[number] = _Child(number, pid, ours)
        log.info("%s runs as process %d", _name(number), pid)
        control = self._children.get(CONTROL)
        if number == CONTROL:
            for worker in self._children.values():
                self._link(child, worker)
            return
        if control is not None:
            self._link(control, child)
        for sibling in self._children.values():
            if sibling.number not in (CONTROL, number):
                self._introduce(child, sibling)

    def _become_child(self, parent: int) -> None:
        """Nothing of the supervisor stays but what was imported."""
        signal.set_wakeup_fd(-1)
        for number in _ALL:
            signal.signal(number, signal.SIG_DFL)
        for end in self._wakeup:
            end.close()
        for child in self._children.values():
            child.leash.close()
        os.setpgid(0, 0)
        die_with_parent(signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(CRASHED)

    def _link(self, control: _Child, worker: _Child) -> None:
        """What cannot be handed over goes to a child that is about to end, or does not matter any more."""
        if control is worker:
            return
        above, below = socket_pair()
        with above, below:
            hand(control.leash, worker.number, above)
            hand(worker.leash, worker.number, below)

    def _introduce(self, one: _Child, other: _Child) -> None:
        """A link between two workers, for connections between their pods; each hears the other's number."""
        left, right = socket_pair()
        with left, right:
            hand(one.leash, other.number, left)
            hand(other.leash, one.number, right)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for child in list(self._children.values()):
                if child.pid == pid:
                    self._ended(child, os.waitstatus_to_exitcode(status))

    def _ended(self, child: _Child, code: int) -> None:
        del self._children[child.number]
        if child.number == CONTROL:
            self._ever_up |= heard_up(child.leash)
        child.leash.close()
        if child.number != CONTROL:
            if not self._stopping:
                self._replace(child, code)
        elif self._stopping or code == 0 or not self._ever_up:
            self._stopping = True
            self._code = code if code >= 0 else CRASHED
            self._end_workers()
        elif code == HANDED_OVER:
            self._due[CONTROL] = time.monotonic()
        else:
            self._replace(child, code)

    def _replace(self, child: _Child, code: int) -> None:
        now = time.monotonic()
        if now - child.began >= LONG_LIFE:
            self._short_lives[child.number] = 0
        short = self._short_lives[child.number] = self._short_lives.get(child.number, 0) + 1
        delay = 0.0 if short == 1 else min(LAST_DELAY, FIRST_DELAY * 2.0 ** (short - 2))
        self._due[child.number] = now + delay
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        log.error("%s (process %d) %s; another one follows in %.2f s", _name(child.number), child.pid, how, delay)

    # ---- the clock, and the end ----

    def _look_at_the_clock(self) -> None:
        now = time.monotonic()
        if now >= self._kill_at:
            self._kill_at = float("inf")
            for child in self._children.values():
                log.error("%s (process %d) did not end by itself: it is killed", _name(child.number), child.pid)
                os.kill(child.pid, signal.SIGKILL)
        for number, due in list(self._due.items()):
            if now >= due:
                self._start(number)

    def _upgrade(self) -> None:
        """The next control half is what is installed now; workers stay as they are until they end."""
        log.info("SIGHUP: the control half is started anew from what is installed now; traffic is not touched")
        self._new_programs = True
        control = self._children.get(CONTROL)
        if control is not None:
            os.kill(control.pid, signal.SIGHUP)

    def _stop(self, why: str) -> None:
        control = self._children.get(CONTROL)
        now = time.monotonic()
        patience = FORCED_PATIENCE if self._stopping else self._stop_seconds
        self._kill_at = min(self._kill_at, now + patience)
        self._stopping = True
        self._due.clear()
        if control is not None:
            os.kill(control.pid, signal.SIGTERM)
        elif self._ending:
            self._kill_at = now
        else:
            log.error("%s while the control half is being replaced: all ends now, capture rules stay", why)
            self._end_workers()

    def _end_workers(self) -> None:
        self._ending = True
        self._due.clear()
        for child in self._children.values():
            child.leash.close()
        self._kill_at = time.monotonic() + WORKER_PATIENCE


def _name(number: int) -> str:
    return "the control half" if number == CONTROL else f"worker {number}"


def _exec(role: Role) -> None:
    """Become what is installed now, as the same command."""
    os.set_inheritable(role.leash.fileno(), True)
    os.environ[_ROLE] = f"{role.number}:{role.workers}:{role.leash.fileno()}"
    try:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    except OSError as error:
        log.critical("%s cannot be started: %s", sys.executable, error)
        os._exit(CRASHED)
