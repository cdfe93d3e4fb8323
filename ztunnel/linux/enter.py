"""Changes of the calling process that have no way back: what a child does before it becomes another program.

`netns.in_netns` visits and returns; this module moves in, for a program that is to live inside a pod.
"""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path

from ztunnel.core.errors import PlatformError
from ztunnel.linux.constants import (
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWUSER,
    MS_BIND,
    MS_PRIVATE,
    MS_REC,
    PR_SET_NAME,
    PR_SET_PDEATHSIG,
)

_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(number: signal.Signals = signal.SIGTERM) -> None:
    """Have the kernel send this signal when the thread that started this process ends, even by SIGKILL.

    For `preexec_fn` of a process with one thread. Survives an exec. A parent that has ended before the call is not
    noticed: look at getppid afterwards.
    """
    _libc.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)


def set_process_name(name: str) -> None:
    """What `ps -o comm` and `top` show; the kernel keeps 15 bytes. To be called in the main thread."""
    _libc.prctl(PR_SET_NAME, name.encode(), 0, 0, 0)


def move_in(network: int, *, user: int | None = None, hosts: Path | None = None) -> None:
    """Move the process into a network namespace, and first into the user namespace `user` that owns it.

    `hosts` becomes /etc/hosts, for this process and its children only. The descriptors stay the caller's. Must be
    called while the process has one thread. Raises PlatformError when it may not.
    """
    if user is not None:
        _must("enter the user namespace", _libc.setns(user, CLONE_NEWUSER))
    _must("enter the network namespace", _libc.setns(network, CLONE_NEWNET))
    if hosts is None:
        return
    _must("make a mount namespace", _libc.unshare(CLONE_NEWNS))
    _must("make mounts private", _libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))
    _must("mount /etc/hosts", _libc.mount(os.fsencode(hosts), b"/etc/hosts", None, MS_BIND, None))


def _must(what: str, result: int) -> None:
    if result != 0:
        reason = os.strerror(ctypes.get_errno())
        raise PlatformError(f"cannot {what}: {reason}", hint="run as the user who made it, or as root")
