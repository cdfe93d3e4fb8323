"""The three HTTP servers of an agent, from its settings: the one door of this room."""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

import trio

from ztunnel.control.admin import web
from ztunnel.control.admin.admin_app import admin_app
from ztunnel.control.admin.readiness_app import readiness_app
from ztunnel.control.admin.source import AdminSource
from ztunnel.control.admin.stats_app import stats_app
from ztunnel.core.model.address import Address
from ztunnel.linux.sockets import has_ipv6, listen_tcp

_log = logging.getLogger("ztunnel.control.admin")


async def serve(source: AdminSource, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Serve admin, metrics and readiness until cancelled; started once all listen.

    Raises PlatformError when a port cannot be had.
    """
    settings = source.settings
    limits = web.Limits(header_timeout=settings.admin_header_timeout)
    with ExitStack() as opened:
        servers = [
            (admin_app(source), _listen(settings.admin_addr, opened)),
            (stats_app(source), _listen(settings.stats_addr, opened)),
            (readiness_app(source), _listen(settings.readiness_addr, opened)),
        ]
        async with trio.open_nursery() as nursery:
            for app, sockets in servers:
                await nursery.start(partial(web.serve, app, sockets, limits))
            task_status.started()


def _listen(addresses: Sequence[Address], opened: ExitStack) -> list[socket.socket]:
    """Listening sockets; `::` is dual stack, and where IPv6 is off, IPv6 addresses are passed over."""
    sockets = []
    for address in addresses:
        wildcard = address.ip == "::"
        if ":" in address.ip and not wildcard and not has_ipv6():
            _log.info("IPv6 is off: not listening", extra={"fields": {"addr": address}})
            continue
        sock = listen_tcp(ip=None if wildcard else address.ip, port=address.port)
        sockets.append(opened.enter_context(sock))
    return sockets
