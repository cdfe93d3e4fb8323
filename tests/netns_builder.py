"""Networks for tests: the product's own topology builder, small servers inside it, and the check that nothing stays.

    with Topology() as t:
        client = t.pod("client", "10.0.1.2", "fd00:1::2")
        server = t.pod("server", "10.0.2.2", "fd00:2::2", node=t.node("node2"))
        with Acceptor(server, "10.0.2.2", 8080) as app:
            sock = client.connect("10.0.2.2", 8080)

All of it blocks: in async tests use the `topology` fixture and `trio.to_thread.run_sync`. Works as root and inside a
user namespace.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

from ztunnel.core.errors import PlatformError
from ztunnel.core.model.address import Address, from_sockaddr
from ztunnel.linux.links import Namespace, Node, Pod, Topology
from ztunnel.linux.netns import NAMED, netns_id, unshare_user_net
from ztunnel.linux.sockets import listen_tcp

__all__ = ["Acceptor", "Leftovers", "Namespace", "Node", "Pod", "Seen", "Topology", "become_root", "in_user_namespace"]


class Seen:
    """What a server learnt of one connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.peer: Address = from_sockaddr(sock.getpeername())
        self.local: Address = from_sockaddr(sock.getsockname())
        self.note: object = None
        """Whatever the acceptor's `look` returned."""


class Acceptor:
    """A TCP server in a namespace: notes every connection, sends `banner` and echoes until the client ends.

    `look` is called with each accepted socket first; `transparent` as for TPROXY.
    """

    def __init__(
        self,
        namespace: Namespace | None,
        ip: str | None,
        port: int,
        *,
        banner: bytes = b"",
        transparent: bool = False,
        mark: int | None = None,
        look: Callable[[socket.socket], object] | None = None,
    ) -> None:
        self.seen: list[Seen] = []
        self._banner = banner
        self._look = look
        fd = None if namespace is None else namespace.fd
        self._listener = listen_tcp(ip=ip, port=port, netns=fd, mark=mark, transparent=transparent)
        self._listener.setblocking(True)
        self.port: int = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(5)
        for sock in list(self._open):
            with _quiet():
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads[1:]:
            thread.join(5)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            self._open.add(sock)
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        with sock, _quiet():
            seen = Seen(sock)
            seen.note = self._look(sock) if self._look else None
            self.seen.append(seen)
            sock.sendall(self._banner)
            while data := sock.recv(65536):
                sock.sendall(data)
        self._open.discard(sock)


class _quiet:
    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        return kind is not None and issubclass(kind, OSError)


class Leftovers:
    """What a test may not leave behind: descriptors, child processes, names of namespaces, links.

    Names and links are shared with the rest of the machine: of the names those with our process id count, and links
    only where the namespace is our own.
    """

    def __init__(self) -> None:
        self._before = self._now()

    def found(self) -> list[str]:
        """What is there now and was not before, in words."""
        now = self._now()
        return sorted(f"{name} ({what})" for name, what in now.items() if self._before.get(name) != what)

    @staticmethod
    def _now() -> Mapping[str, str]:
        things: dict[str, str] = {}
        if in_user_namespace():
            things |= {f"link {name}": str(index) for index, name in socket.if_nameindex()}
        if NAMED.is_dir():
            things |= {f"namespace {name}": "named" for name in os.listdir(NAMED) if str(os.getpid()) in name}
        for task in os.listdir("/proc/self/task"):
            with _quiet():
                for child in Path(f"/proc/self/task/{task}/children").read_text().split():
                    things[f"child {child}"] = "process"
        device, inode = netns_id(None)
        for fd in os.listdir("/proc/self/fd"):
            with _quiet():
                status = os.stat(f"/proc/self/fd/{fd}")
                if (status.st_dev, status.st_ino) != (device, inode):  # each thread keeps one of its home
                    things[f"descriptor {fd}"] = os.readlink(f"/proc/self/fd/{fd}")
        return things


def in_user_namespace() -> bool:
    """Whether root here is only root of a user namespace."""
    return Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"]


def become_root() -> str:
    """Enter a user namespace when not root. The answer says why that failed, empty when all is well."""
    if os.geteuid() == 0:
        return ""
    try:
        unshare_user_net()
    except PlatformError as error:
        return f"{error}; {error.hint}"
    return ""
