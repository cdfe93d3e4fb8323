"""What every listener role of a worker works with: one value, made by the composition root, passed down.

Roles take from it what they need and keep no state of their own beside their connections.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from random import Random

from ztunnel.config.settings import Settings
from ztunnel.worker.engine.agreement import Settings as TunnelSettings
from ztunnel.worker.engine.h2 import Tunnel
from ztunnel.worker.engine.keepalive import Keepalive
from ztunnel.worker.engine.loop import Deadlines, Loop
from ztunnel.worker.engine.relay import Pipes
from ztunnel.worker.engine.tcp import Dialler, SocketOptions
from ztunnel.worker.proxy.authorize import Authorizer
from ztunnel.worker.proxy.certificates import Certificates
from ztunnel.worker.proxy.connections import Connections
from ztunnel.worker.proxy.joins import Joins
from ztunnel.worker.proxy.ledger import Ledger
from ztunnel.worker.state.store import Store

MOST_STRANGERS = 1024
"""Handshakes that peers may have begun and not finished. Each takes 66 KiB once the peer has said hello, and a good one
is through in milliseconds, so these bound what a flood costs (68 MB), not what a busy node is asked for."""

Spawn = Callable[[Callable[[], Awaitable[None]]], None]
"""Starts a supervised trio task."""


class Kit:
    def __init__(
        self,
        *,
        loop: Loop,
        settings: Settings,
        store: Store,
        certificates: Certificates,
        ledger: Ledger,
        connections: Connections,
        spawn: Spawn,
        random: Random,
    ) -> None:
        self.loop = loop
        self.settings = settings
        self.store = store
        self.certificates = certificates
        self.ledger = ledger
        self.connections = connections
        self.spawn = spawn
        self.random = random
        self.authorizer = Authorizer(store, logging.INFO if settings.authz_policy_info_logging else logging.DEBUG)
        self.pipes = Pipes()
        self.joins = Joins(enabled=settings.same_node_join)
        self.dialler = Dialler(loop, settings.connect_timeout)
        self.keepalive = Keepalive(loop, settings.ping_interval, settings.ping_timeout)
        self.socket_options = SocketOptions(
            keepalive=settings.keepalive_enabled,
            keepalive_time=max(1, round(settings.keepalive_time)),
            keepalive_interval=max(1, round(settings.keepalive_interval)),
            keepalive_retries=settings.keepalive_retries,
            user_timeout=round((settings.user_timeout or 0) * 1000),
            congestion=settings.tcp_congestion,
            notsent_lowat=settings.tcp_notsent_lowat,
        )
        self.tunnel_settings = TunnelSettings(
            stream_window=settings.http2_stream_window_size,
            connection_window=settings.http2_connection_window_size,
            frame_size=settings.http2_frame_size,
        )
        self.handshakes = Deadlines(
            loop,
            settings.tls_handshake_timeout,
            _abort(f"no TLS handshake within {settings.tls_handshake_timeout:g} s"),
        )
        self.strangers = Deadlines(
            loop,
            settings.tls_handshake_timeout,
            _abort(
                f"no TLS handshake within {settings.tls_handshake_timeout:g} s, or before {MOST_STRANGERS} others began"
            ),
            most=MOST_STRANGERS,
        )
        """Peers that have connected to us and not shown a certificate yet."""
        self.prefaces = Deadlines(
            loop,
            settings.http2_preface_timeout,
            _abort(f"no HTTP/2 preface within {settings.http2_preface_timeout:g} s"),
        )
        self.answers = Deadlines(
            loop,
            settings.connect_response_timeout,
            _abort(f"no answer to CONNECT within {settings.connect_response_timeout:g} s"),
        )

    def settled(self, tunnel: Tunnel) -> None:
        """Both ends have exchanged SETTINGS: it is watched from now on, and what the handshake took is given back."""
        self.prefaces.discard(tunnel)
        self.keepalive.add(tunnel)
        tunnel.session.trim()


def _abort(why: str) -> Callable[[object], None]:
    def expire(key: object) -> None:
        key.abort(why)  # type: ignore[attr-defined]

    return expire
