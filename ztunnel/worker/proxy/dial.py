"""Opening one tunnel: certificate, TCP, TLS with the expected identities. What fails is named with its cause."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import NamedTuple

import trio

from ztunnel.core.errors import TlsError, UpstreamError, ZtunnelError
from ztunnel.core.model.address import Address
from ztunnel.core.model.identity import Identity
from ztunnel.worker.engine.ending import Ending
from ztunnel.worker.engine.h2 import Tunnel, TunnelOwner
from ztunnel.worker.engine.tls import Verify
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


async def dial(kit: Kit, key: PoolKey, owner: TunnelOwner, open_socket: OpenSocket) -> Tunnel:
    """A tunnel whose TLS handshake is under way; `owner` hears when it is ready or has failed.

    Raises IdentityUnavailable, UpstreamError or BlockedError. Once cancelled it never opens a socket again: the pod's
    namespace may be gone, and the number of its descriptor another's.
    """
    credentials = await kit.certificates.wait(key.source)
    await trio.lowlevel.checkpoint_if_cancelled()
    try:
        sock = open_socket(key.next_hop)
    except OSError as error:
        raise UpstreamError(f"no socket for {key.next_hop}: {error.strerror}") from error
    try:
        await connect(kit, sock, key.next_hop)
        await trio.lowlevel.checkpoint_if_cancelled()
        session = credentials.client.session(kit.loop.scratch, expect(key.destinations))
    except OSError as error:
        sock.close()
        raise refused_dial(key, error) from error
    except BaseException:
        sock.close()
        raise
    tunnel = Tunnel(kit.loop, sock, session, owner, kit.tunnel_settings, client=True)
    kit.handshakes.add(tunnel)
    return tunnel


async def connect(kit: Kit, sock: socket.socket, address: Address) -> None:
    """Raises OSError; TimeoutError after CONNECT_TIMEOUT."""
    done = trio.Event()
    outcome: list[OSError | None] = []

    def settled(error: OSError | None) -> None:
        outcome.append(error)
        done.set()

    kit.dialler.connect(sock, address, settled)
    try:
        await done.wait()
    except trio.Cancelled:
        kit.dialler.cancel(sock)
        raise
    if outcome[0] is not None:
        raise outcome[0]


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
