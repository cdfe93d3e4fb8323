"""Network namespaces: open them, make them, step into one and always come back.

Theory of operation. A network namespace belongs to a thread, and a socket belongs for ever to the namespace in
which it was made. So nothing has to live inside a pod's namespace: `in_netns` moves the calling thread there,
the sockets (or the child process) are made, and the thread returns before anything else can run on it. The block
must therefore be synchronous. A thread that cannot return would open the next pod's sockets in the wrong place;
there is no safe way on from that, so the process aborts.

The thread's home is opened once per thread and kept, which halves the cost of a visit (about 10 us in all). Only
this module calls setns and unshare, so the kept home cannot go stale.

Owns ctypes. Knows nothing of pods, rules or the mesh.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import threading
from pathlib import Path
from types import TracebackType

from ztunnel.core.errors import PlatformError
from ztunnel.linux.constants import (
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWUSER,
    IFF_UP,
    MNT_DETACH,
    MS_BIND,
    MS_PRIVATE,
    MS_REC,
    NS_GET_NSTYPE,
    SIOCSIFFLAGS,
)

NAMED = Path("/run/netns")
"""Where `ip netns` keeps its names."""

_OWN = "/proc/thread-self/ns/net"
_libc = ctypes.CDLL(None, use_errno=True)


class _Kept:
    """A descriptor of the calling thread's namespace, closed when the thread's data goes."""

    def __init__(self) -> None:
        self.fd = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        os.close(self.fd)


class _Home(threading.local):
    """The namespace each thread belongs to."""

    def __init__(self) -> None:
        self.kept = _Kept()

    @property
    def fd(self) -> int:
        return self.kept.fd

    def refresh(self) -> None:
        self.kept = _Kept()


_home = _Home()


class in_netns:
    """Run the block in the namespace `fd`; None is the thread's own, and then this does nothing.

    The block must not wait and must not nest. Raises PlatformError when the namespace cannot be entered.
    """

    __slots__ = ("_fd", "_home")

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def __enter__(self) -> None:
        fd = self._fd
        if fd is None:
            return
        self._home = _home.fd  # opened before leaving: from inside it could not be found again
        if _libc.setns(fd, CLONE_NEWNET) != 0:
            raise _cannot_enter(ctypes.get_errno())

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._fd is not None:
            _return_to(self._home)


def _return_to(home: int) -> None:
    if _libc.setns(home, CLONE_NEWNET) != 0:
        os.write(2, b"ztunnel: cannot return to the home network namespace; aborting\n")
        os.abort()


def _cannot_enter(error: int) -> PlatformError:
    if error == 1:  # EPERM
        return PlatformError(
            "may not enter the network namespace: Operation not permitted",
            hint="run as root, or grant CAP_SYS_ADMIN (setns needs it in the namespace's own user namespace)",
        )
    return PlatformError(f"cannot enter the network namespace: {os.strerror(error)}", hint="is the pod already gone?")


def open_netns(name: str) -> int:
    """A descriptor of the namespace `name`: one of `ip netns`, or an absolute path such as /proc/PID/ns/net.

    The caller owns the descriptor. Raises PlatformError when there is no such namespace.
    """
    path = Path(name) if name.startswith("/") else NAMED / name
    if not name or (not name.startswith("/") and "/" in name):
        raise PlatformError(
            f"network namespace {name!r}: not a name or absolute path",
            hint="see `ip netns list`, or use /proc/PID/ns/net",
        )
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        hint = "run as root" if isinstance(error, PermissionError) else "see `ip netns list`, or use /proc/PID/ns/net"
        raise PlatformError(f"network namespace {name!r}: {error.strerror} ({path})", hint=hint) from None
    if not is_netns(fd):
        os.close(fd)
        raise PlatformError(
            f"network namespace {name!r}: {path} is not a network namespace",
            hint="its process or container may be gone; a name left behind is removed with `ip netns delete`",
        )
    return fd


def is_netns(fd: int) -> bool:
    """Whether the descriptor is a network namespace."""
    try:
        return fcntl.ioctl(fd, NS_GET_NSTYPE) == CLONE_NEWNET
    except OSError:
        return False


def netns_id(fd: int | None) -> tuple[int, int]:
    """(device, inode): equal exactly when two descriptors are the same namespace. None is the thread's own."""
    status = os.stat(_OWN) if fd is None else os.fstat(fd)
    return status.st_dev, status.st_ino


def create_netns() -> int:
    """A new, empty network namespace that lives as long as its descriptor or a process in it.

    Raises PlatformError without CAP_SYS_ADMIN.
    """
    home = _home.fd
    if _libc.unshare(CLONE_NEWNET) != 0:
        raise PlatformError(
            f"cannot make a network namespace: {os.strerror(ctypes.get_errno())}",
            hint="run as root, or inside a user namespace (`unshare -Urnm`)",
        )
    try:
        return os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    finally:
        _return_to(home)


def bring_up_loopback() -> None:
    """Switch on `lo` in the namespace the calling thread is in; it is off in a new one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))


def name_netns(fd: int, name: str) -> None:
    """Give the namespace a name for `ip netns exec`. Undone by `unname_netns`.

    Raises PlatformError when the name is taken or mounting is not allowed.
    """
    target = NAMED / name
    try:
        NAMED.mkdir(mode=0o755, exist_ok=True)
        target.touch(mode=0o444, exist_ok=False)
    except OSError as error:
        raise PlatformError(f"cannot name a network namespace {name!r}: {error.strerror} ({target})") from None
    if _libc.mount(f"/proc/thread-self/fd/{fd}".encode(), os.fsencode(target), b"none", MS_BIND, None) != 0:
        reason = os.strerror(ctypes.get_errno())
        target.unlink()
        raise PlatformError(f"cannot name a network namespace {name!r}: mount: {reason}", hint="run as root")


def unname_netns(name: str) -> None:
    """Take the name away; quiet when it is gone already."""
    target = NAMED / name
    _libc.umount2(os.fsencode(target), MNT_DETACH)
    target.unlink(missing_ok=True)


def unshare_user_net() -> None:
    """Move the process into a user, network and mount namespace of its own, in which it is root.

    After it, namespaces, links and rules work without privilege (for the demo and the tests). /run becomes an
    empty private file system, because the tools keep their locks and names there. Must be called while the process
    has one thread. Raises PlatformError where the system forbids user namespaces.
    """
    uid, gid = os.geteuid(), os.getegid()
    if _libc.unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWNS) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise PlatformError(
            f"cannot make a user namespace: {reason}",
            hint="run as root, or allow them: sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone=1, "
            "kernel.apparmor_restrict_unprivileged_userns=0",
        )
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    except OSError as error:
        raise PlatformError(
            f"cannot become root of the new user namespace: {error.strerror} ({error.filename})",
            hint="the system restricts user namespaces; run as root",
        ) from None
    _home.refresh()
    bring_up_loopback()
    _libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None)
    if _libc.mount(b"tmpfs", b"/run", b"tmpfs", 0, b"mode=0755") != 0:
        raise PlatformError(f"cannot mount a private /run: {os.strerror(ctypes.get_errno())}", hint="run as root")
