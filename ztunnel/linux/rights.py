"""What the process may do here, found out by trying, and what the kernel offers. Read by `ztunnel check`.

Capabilities alone do not tell (user namespaces, seccomp, the kernel's age), so each right that the agent uses is tried
on a socket of its own.
"""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Callable
from pathlib import Path

import msgspec

from ztunnel.core.errors import PlatformError
from ztunnel.linux.constants import CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_ADMIN
from ztunnel.linux.netns import in_netns, open_netns
from ztunnel.linux.packets import Sniffer
from ztunnel.linux.sockets import has_ipv6, set_mark, set_transparent


class Rights(msgspec.Struct, frozen=True, kw_only=True):
    """True where it was tried and worked."""

    net_admin: bool
    net_raw: bool
    sys_admin: bool
    """The three capabilities in the effective set."""
    enter_namespaces: str
    mark: str
    transparent: str
    sniff: str
    """Empty when it works, else why not and what to do."""


class Kernel(msgspec.Struct, frozen=True, kw_only=True):
    """Facts, none of them a verdict."""

    release: str
    ipv6: bool
    user_namespaces: bool
    in_user_namespace: bool
    congestion_control: str
    open_files: tuple[int, int]
    """Soft and hard limit."""


def rights() -> Rights:
    """Try everything the agent needs; nothing is left behind."""
    capabilities = _capabilities()
    return Rights(
        net_admin=_has(capabilities, CAP_NET_ADMIN),
        net_raw=_has(capabilities, CAP_NET_RAW),
        sys_admin=_has(capabilities, CAP_SYS_ADMIN),
        enter_namespaces=_refusal(_enter_own_namespace),
        mark=_refusal(lambda: _with_socket(lambda sock: set_mark(sock, 0x539))),
        transparent=_refusal(lambda: _with_socket(set_transparent)),
        sniff=_refusal(lambda: Sniffer(None).close()),
    )


def kernel() -> Kernel:
    """What this kernel is and how it is set up."""
    own_map = _read("/proc/self/uid_map").split()
    return Kernel(
        release=os.uname().release,
        ipv6=has_ipv6(),
        user_namespaces=_read("/proc/sys/user/max_user_namespaces") not in ("", "0")
        and _read("/proc/sys/kernel/unprivileged_userns_clone") != "0",
        in_user_namespace=own_map != ["0", "0", "4294967295"],
        congestion_control=_read("/proc/sys/net/ipv4/tcp_congestion_control"),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE),
    )


def raise_open_files(wanted: int = 1 << 20) -> int:
    """Raise the soft limit of open files towards `wanted`, as far as the hard limit allows; returns what it is now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft == resource.RLIM_INFINITY or soft >= limit:
        return soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return limit


def _refusal(attempt: Callable[[], None]) -> str:
    try:
        attempt()
    except PlatformError as error:
        return f"{error}; {error.hint}" if error.hint else str(error)
    return ""


def _with_socket(use: Callable[[socket.socket], None]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        use(sock)


def _enter_own_namespace() -> None:
    """The kernel asks for the same right as for any other namespace."""
    fd = open_netns("/proc/thread-self/ns/net")
    try:
        with in_netns(fd):
            pass
    finally:
        os.close(fd)


def _capabilities() -> int:
    for line in _read("/proc/thread-self/status").splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def _has(capabilities: int, number: int) -> bool:
    return bool(capabilities >> number & 1)


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
