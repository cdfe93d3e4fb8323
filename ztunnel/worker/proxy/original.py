"""The original destination of a captured connection, by the way it was captured."""

from __future__ import annotations

import socket

from ztunnel.core.model.address import Address, from_sockaddr
from ztunnel.core.model.capture import CaptureMode
from ztunnel.linux import sockets


def original_destination(sock: socket.socket, capture: CaptureMode) -> Address | None:
    """REDIRECT: from connection tracking. TPROXY: the socket's own address. Rules of others: whichever is known.

    None when the kernel does not tell.
    """
    if capture is CaptureMode.REDIRECT or capture is CaptureMode.NONE:
        found = sockets.original_destination(sock)
        if found is not None or capture is CaptureMode.REDIRECT:
            return found
    try:
        return from_sockaddr(sock.getsockname())
    except OSError:
        return None
