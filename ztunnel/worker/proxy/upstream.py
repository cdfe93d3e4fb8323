"""Sockets that connect in a pod's name: to its peers as the pod itself, to its application as the client."""

from __future__ import annotations

import errno
import logging
import socket
from typing import TYPE_CHECKING

from ztunnel.core.errors import PlatformError
from ztunnel.core.model.address import Address
from ztunnel.core.model.capture import CaptureMode
from ztunnel.linux.sockets import bind_source, new_plain_socket
from ztunnel.worker.proxy.kit import Kit

if TYPE_CHECKING:
    from ztunnel.worker.proxy.pod import Pod

log = logging.getLogger("ztunnel.worker.proxy.upstream")


def pod_socket(kit: Kit, pod: Pod, target: Address) -> socket.socket:
    """From the pod to a peer; not yet connected. Raises OSError when the namespace gives no socket.

    In the node's namespace the pod's address has to be taken on, or its peers would see the node's.
    """
    sock = _socket(kit, pod, target)
    if pod.capture is CaptureMode.NODE and pod.original_source:
        own = next((ip for ip in pod.added.ips if (":" in ip) == (":" in target.ip)), "")
        if own:
            _bind_source(sock, own)
    return sock


def upstream_socket(kit: Kit, pod: Pod, source: Address, target: Address) -> socket.socket:
    """To the pod's application, from the client's own address where that is possible; not yet connected.

    Raises OSError when the namespace gives no socket.
    """
    sock = _socket(kit, pod, target)
    if pod.original_source and source.ip != target.ip and (":" in source.ip) == (":" in target.ip):
        _bind_source(sock, source.ip)
    return sock


def _socket(kit: Kit, pod: Pod, target: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in target.ip else socket.AF_INET
    try:
        sock = new_plain_socket(family, pod.netns_fd, pod.mark)
    except PlatformError as error:
        raise OSError(errno.EPERM, str(error)) from error
    kit.socket_options.apply(sock)
    return sock


def _bind_source(sock: socket.socket, ip: str) -> None:
    """Connect from an address that is not ours; where that fails, go on from our own."""
    try:
        bind_source(sock, ip)
    except (OSError, PlatformError) as error:
        log.warning("cannot connect from %s: %s", ip, error)
