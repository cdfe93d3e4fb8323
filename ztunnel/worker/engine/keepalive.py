"""Looks after tunnels that are silent: a PING to each, an end to those that do not answer, less memory for the rest.

One timer serves all tunnels of a loop. A tunnel that carries data is alive and is never pinged.
"""

from __future__ import annotations

import time

from ztunnel.worker.engine.h2 import Tunnel
from ztunnel.worker.engine.loop import Loop


class Keepalive:
    """`interval` and `timeout` are seconds (ztunnel: 10 and 20)."""

    def __init__(self, loop: Loop, interval: float, timeout: float) -> None:
        self._loop = loop
        self._interval = interval
        self._timeout = timeout
        self._tunnels: dict[Tunnel, int] = {}
        self._timer = loop.call_later(interval, self._sweep)

    def __len__(self) -> int:
        return len(self._tunnels)

    def add(self, tunnel: Tunnel) -> None:
        self._tunnels[tunnel] = tunnel.received_frames

    def discard(self, tunnel: Tunnel) -> None:
        self._tunnels.pop(tunnel, None)

    def stop(self) -> None:
        self._timer.cancel()

    def _sweep(self) -> None:
        self._timer = self._loop.call_later(self._interval, self._sweep)
        now = time.monotonic()
        for tunnel, seen in list(self._tunnels.items()):
            if tunnel.closed:
                self.discard(tunnel)
                continue
            if tunnel.ping_sent_at is not None:
                if now - tunnel.ping_sent_at >= self._timeout:
                    tunnel.abort(f"the peer did not answer a PING within {self._timeout:g} s")
                continue
            if tunnel.settled and tunnel.received_frames == seen:
                tunnel.session.trim()
                tunnel.send_ping(now)
            self._tunnels[tunnel] = tunnel.received_frames
