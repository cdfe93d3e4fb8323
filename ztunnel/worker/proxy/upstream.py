"""The socket towards an application in a pod, with the client's address as its own where that is possible."""

from __future__ import annotations

import errno
import logging
import socket
from typing import TYPE_CHECKING

from ztunnel.core.errors import PlatformError
from ztunnel.core.model.address import Address
from ztunnel.linux.sockets import new_tcp_socket, set_transparent
from ztunnel.worker.proxy.kit import Kit

if TYPE_CHECKING:
    from ztunnel.worker.proxy.pod import Pod

log = logging.getLogger("ztunnel.worker.proxy.upstream")


def upstream_socket(kit: Kit, pod: Pod, source: Address, target: Address) -> socket.socket:
    """Not yet connected. Raises OSError when the namespace gives no socket."""
    family = socket.AF_INET6 if ":" in target.ip else socket.AF_INET
    try:
        sock = new_tcp_socket(family, pod.netns_fd, pod.mark)
    except PlatformError as error:
        raise OSError(errno.EPERM, str(error)) from error
    kit.socket_options.apply(sock)
    if pod.original_source and source.ip != target.ip and (":" in source.ip) == (":" in target.ip):
        _bind_source(sock, source)
    return sock


def _bind_source(sock: socket.socket, source: Address) -> None:
    """Show the application its client's address; without it the connection goes on from our own."""
    try:
        set_transparent(sock)
        sock.bind((source.ip, 0))
    except (OSError, PlatformError) as error:
        log.warning("cannot preserve the source address %s: %s", source.ip, error)
