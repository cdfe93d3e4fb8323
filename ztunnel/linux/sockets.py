"""Sockets as a transparent proxy needs them: marked, transparent, in another namespace, with their first destination.

Everything returned is non-blocking and close-on-exec. Sockets of another namespace cost one visit there
(`netns.in_netns`, about 10 us), which several sockets can share.

What a carried connection needs, `accept` and `new_plain_socket` make without the Python layer of `socket.socket`: such
a socket has the same methods (but is no context manager), half the size, and takes 3 us less to accept.

Knows no pods and no mesh; numbers of options are in constants.py (reference: ztunnel's src/socket.rs).
"""

from __future__ import annotations

import _socket
import errno
import socket
import struct
from functools import lru_cache
from pathlib import Path
from typing import Any

from ztunnel.core.errors import PlatformError
from ztunnel.core.model.address import Address, from_sockaddr
from ztunnel.linux.constants import (
    IP_BIND_ADDRESS_NO_PORT,
    IP_FREEBIND,
    IP_TRANSPARENT,
    IPV6_FREEBIND,
    IPV6_TRANSPARENT,
    SIZEOF_SOCKADDR_IN,
    SIZEOF_SOCKADDR_IN6,
    SO_ORIGINAL_DST,
)
from ztunnel.linux.netns import in_netns

_STREAM = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
_MARK = struct.Struct("I")
_PORT = struct.Struct("!2xH")
_IPV6_OFF = Path("/proc/sys/net/ipv6/conf/all/disable_ipv6")
_IPV6_LOOPBACK_OFF = Path("/proc/sys/net/ipv6/conf/lo/disable_ipv6")
_IPV6_ABSENT = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


def original_destination(sock: socket.socket) -> Address | None:
    """Where the client of an accepted, REDIRECTed connection wanted to go, read from connection tracking.

    None when the kernel knows of none (not redirected, not tracked, or TPROXY: then the socket's own address is it).
    A dual-stack socket is asked for IPv4 first, which its v4-mapped connections have.
    """
    try:
        return _read_sockaddr_in(sock.getsockopt(socket.IPPROTO_IP, SO_ORIGINAL_DST, SIZEOF_SOCKADDR_IN))
    except OSError:
        if sock.family != socket.AF_INET6:
            return None
    try:
        raw = sock.getsockopt(socket.IPPROTO_IPV6, SO_ORIGINAL_DST, SIZEOF_SOCKADDR_IN6)
    except OSError:
        return None
    return from_sockaddr((socket.inet_ntop(socket.AF_INET6, raw[8:24]), _PORT.unpack_from(raw)[0]))


@lru_cache(maxsize=4096)
def _read_sockaddr_in(raw: bytes) -> Address:
    """Remembered, because clients go to the same few services again and again."""
    return Address(socket.inet_ntoa(raw[4:8]), _PORT.unpack_from(raw)[0])


def set_mark(sock: socket.socket, mark: int) -> None:
    """SO_MARK, by which the capture rules know our own sockets.

    Raises PlatformError without CAP_NET_ADMIN (or CAP_NET_RAW since Linux 5.17).
    """
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, _MARK.pack(mark))
    except PermissionError:
        raise PlatformError(
            f"may not set the packet mark {mark:#x} on a socket",
            hint="grant CAP_NET_ADMIN; only a dedicated agent without CAPTURE_MODE and PACKET_MARK needs no mark",
        ) from None


def set_transparent(sock: socket.socket) -> None:
    """Let the socket have addresses that are not ours (IP_TRANSPARENT and IP_FREEBIND, or the IPv6 twins).

    Raises PlatformError without CAP_NET_ADMIN.
    """
    try:
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
            sock.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
    except PermissionError:
        raise PlatformError(
            "may not make a socket transparent (IP_TRANSPARENT)",
            hint="grant CAP_NET_ADMIN, or set ENABLE_ORIG_SRC=false",
        ) from None


def bind_source(sock: socket.socket, ip: str) -> None:
    """Connect from an address that need not be ours; the port is chosen with the destination in view.

    Without IP_BIND_ADDRESS_NO_PORT (ip(7), Linux 4.2) a source address would have one ephemeral port for each
    connection, wherever it goes. Raises PlatformError without CAP_NET_ADMIN, OSError when the address cannot be had.
    """
    set_transparent(sock)
    sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
    sock.bind((ip, 0))


def new_tcp_socket(family: int, netns: int | None = None, mark: int | None = None) -> socket.socket:
    """A TCP socket of the namespace `netns` (None: our own), TCP_NODELAY set, marked when `mark` is given."""
    return new_tcp_sockets(1, family, netns, mark)[0]


def new_tcp_sockets(count: int, family: int, netns: int | None = None, mark: int | None = None) -> list[socket.socket]:
    """`count` sockets as `new_tcp_socket` makes them, for the price of one visit to the namespace."""
    made: list[socket.socket] = []
    try:
        with in_netns(netns):
            made.extend(socket.socket(family, _STREAM) for _ in range(count))
        for sock in made:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if mark is not None:
                set_mark(sock, mark)
    except BaseException:
        for sock in made:
            sock.close()
        raise
    return made


def new_plain_socket(family: int, netns: int | None = None, mark: int | None = None) -> socket.socket:
    """A TCP socket of the namespace `netns` without the Python layer and without any option but the mark."""
    with in_netns(netns):
        sock: Any = _socket.socket(family, _STREAM)
    if mark is not None:
        try:
            set_mark(sock, mark)
        except BaseException:
            sock.close()
            raise
    return sock  # type: ignore[no-any-return]


def accept(listener: socket.socket, family: int) -> tuple[socket.socket, Any]:
    """A connection of a non-blocking TCP listener of `family`, without the Python layer, and its peer's address.

    Raises BlockingIOError when there is none, OSError as accept(2) fails.
    """
    fd, peer = listener._accept()  # type: ignore[attr-defined]  # what `accept` is made of
    sock: Any = _socket.socket(family, socket.SOCK_STREAM, 0, fd)
    sock.setblocking(False)
    return sock, peer


def listen_tcp(
    *,
    ip: str | None,
    port: int,
    netns: int | None = None,
    mark: int | None = None,
    transparent: bool = False,
    reuse_port: bool = False,
    backlog: int = 128,
    ipv6: bool = True,
) -> socket.socket:
    """A listening TCP socket of the namespace `netns` (None: our own).

    `ip` None is the wildcard: dual-stack `[::]`, or 0.0.0.0 when `ipv6` is false or that namespace has IPv6 off.
    Raises PlatformError when the port is taken, the address is not there or a right is missing.
    """
    with in_netns(netns):
        if ip is None and ipv6 and has_ipv6():
            try:
                return _listen("::", port, mark, transparent, reuse_port, backlog)
            except OSError as error:
                if error.errno not in _IPV6_ABSENT:
                    raise _cannot_listen("[::]", port, error) from None
        where = ip or "0.0.0.0"
        try:
            return _listen(where, port, mark, transparent, reuse_port, backlog)
        except OSError as error:
            raise _cannot_listen(where, port, error) from None


def has_ipv6() -> bool:
    """Whether IPv6 is on in the namespace the calling thread is in (sysctl disable_ipv6 of `all` and `lo`)."""
    try:
        return _IPV6_OFF.read_text().strip() != "1" and _IPV6_LOOPBACK_OFF.read_text().strip() != "1"
    except OSError:
        return False


def _listen(ip: str, port: int, mark: int | None, transparent: bool, reuse_port: bool, backlog: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, _STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if ip == "::" else 1)
        if mark is not None:
            set_mark(sock, mark)
        if transparent:
            set_transparent(sock)
            if ip == "::":  # the flag of the IPv4 half is a separate one
                sock.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
        sock.bind((ip, port))
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def _cannot_listen(ip: str, port: int, error: OSError) -> PlatformError:
    hints = {
        errno.EADDRINUSE: f"another process holds the port; find it with `ss -ltnp 'sport = :{port}'`",
        errno.EACCES: "ports below 1024 need CAP_NET_BIND_SERVICE",
        errno.EADDRNOTAVAIL: "the address is not on an interface of this namespace",
    }
    return PlatformError(f"cannot listen on {ip}:{port}: {error.strerror}", hint=hints.get(error.errno or 0, ""))
