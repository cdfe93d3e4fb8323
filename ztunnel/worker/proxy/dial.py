"""Opening one tunnel: certificate, TCP, TLS with the expected identities. What fails is named with its cause."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import trio

from ztunnel.core.errors import TlsError, UpstreamError, ZtunnelError
from ztunnel.core.model.address import Address
from ztunnel.core.model.identity import Identity
from ztunnel.worker.engine.ending import Ending
from ztunnel.worker.engine.h2 import Tunnel, TunnelOwner
from ztunnel.worker.engine.tls import Verify
from ztunnel.worker.proxy.certificates import Credentials
from ztunnel.worker.proxy.kit import Kit


class PoolKey(NamedTuple):
    """Connections with the same key may share a tunnel."""

    source: Identity
    destinations: tuple[Identity, ...]
    """Any one of these the peer must prove to be."""
    next_hop: Address


class BlockedError(UpstreamError):
    """Silence on the tunnel port: usually a policy of the network, not of the mesh."""

    flag = "NETWORK_POLICY"


OpenSocket = Callable[[Address], socket.socket]
"""Makes a pod's socket, not yet connected, for an address; raises OSError."""


class Dial:
    """One attempt: calls `begun` when the TLS handshake is under way, whose outcome `owner` hears, or else `failed`.

    `begin` gets as far as it can at once; a task waits for nothing but a certificate.
    """

    def __init__(
        self,
        kit: Kit,
        key: PoolKey,
        owner: TunnelOwner,
        open_socket: OpenSocket,
        *,
        begun: Callable[[Dial, Tunnel], None],
        failed: Callable[[Dial, ZtunnelError], None],
    ) -> None:
        self._kit = kit
        self._key = key
        self._owner = owner
        self._open_socket = open_socket
        self._begun = begun
        self._failed = failed
        self._sock: socket.socket | None = None
        self._waiting = trio.CancelScope()

    def begin(self) -> None:
        credentials = self._kit.certificates.get(self._key.source)
        if credentials is None:
            self._kit.spawn(self._wait)
        else:
            self._connect(credentials)

    def cancel(self) -> None:
        """It never opens a socket again: the pod's namespace may be gone, and its descriptor's number another's."""
        self._waiting.cancel()
        sock, self._sock = self._sock, None
        if sock is not None:
            self._kit.dialler.cancel(sock)
            self._kit.loop.close(sock)

    async def _wait(self) -> None:
        with self._waiting:
            try:
                credentials = await self._kit.certificates.wait(self._key.source)
                await trio.lowlevel.checkpoint_if_cancelled()
            except ZtunnelError as error:
                self._failed(self, error)
            else:
                self._connect(credentials)

    def _connect(self, credentials: Credentials) -> None:
        next_hop = self._key.next_hop
        try:
            self._sock = self._open_socket(next_hop)
        except OSError as error:
            self._failed(self, UpstreamError(f"no socket for {next_hop}: {error.strerror}"))
            return
        self._kit.dialler.connect(self._sock, next_hop, partial(self._connected, credentials))

    def _connected(self, credentials: Credentials, error: OSError | None) -> None:
        kit, key = self._kit, self._key
        sock, self._sock = self._sock, None
        assert sock is not None
        if error is not None:
            kit.loop.close(sock)
            self._failed(self, refused_dial(key, error))
            return
        session = credentials.client.session(kit.loop.scratch, expect(key.destinations))
        tunnel = Tunnel(kit.loop, sock, session, self._owner, kit.tunnel_settings, client=True)
        kit.handshakes.add(tunnel)
        self._begun(self, tunnel)


def expect(identities: tuple[Identity, ...]) -> Verify:
    """Accepts a peer that proves to be any of these."""
    accepted = frozenset(map(str, identities))

    def verify(names: tuple[str, ...]) -> str | None:
        if accepted.intersection(names):
            return None
        return f"the peer is {', '.join(names) or 'nobody'}, expected {' or '.join(sorted(accepted))}"

    return verify


def tunnel_failure(key: PoolKey, ending: Ending) -> ZtunnelError:
    """A tunnel that ended before it was ready."""
    message = f"no tunnel to {key.next_hop}: {ending.error}"
    if ending.flag == "TLS_FAILURE":
        return TlsError(message, hint="compare the trust domains and CAs of both sides: `ztunnel show certs`")
    return UpstreamError(message)


def refused_dial(key: PoolKey, error: OSError) -> UpstreamError:
    """A TCP connection to the next hop that did not come about."""
    message = f"cannot connect to {key.next_hop}: {error.strerror}"
    if error.errno == errno.ETIMEDOUT:
        return BlockedError(
            f"{message}; a NetworkPolicy or firewall may block port {key.next_hop.port}",
            hint=f"try `nc -vz {key.next_hop.ip} {key.next_hop.port}` from the client's namespace",
        )
    return UpstreamError(message)
