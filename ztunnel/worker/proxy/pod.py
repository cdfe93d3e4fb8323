"""A pod as a worker knows it: its namespace, its listeners, and the three roles that serve them.

Pods captured in the node's own namespace share listeners (`NodeListeners`): there the source address (outbound) or
the destination address (inbound) of a connection names the pod.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

import msgspec
import trio

from ztunnel.core.errors import PlatformError, UpstreamError
from ztunnel.core.model.address import from_sockaddr
from ztunnel.core.model.capture import CaptureMode
from ztunnel.core.model.identity import Identity
from ztunnel.core.model.workload import Workload
from ztunnel.link.messages import PodAdded
from ztunnel.linux.netns import netns_id
from ztunnel.linux.sockets import listen_tcp, new_tcp_socket, set_transparent
from ztunnel.worker.engine.tcp import Listener, abort_on_close
from ztunnel.worker.proxy.inbound import Inbound
from ztunnel.worker.proxy.kit import Kit
from ztunnel.worker.proxy.outbound import Outbound
from ztunnel.worker.proxy.passthrough import Passthrough

Take = Callable[[socket.socket, Any], None]
"""Takes an accepted socket and its peer's address; owns the socket."""

LISTEN_BACKLOG = 1024
WORKLOAD_WAIT = 5.0
"""Seconds that a connection waits for the pod's own workload to become known; as long as in Istio's ztunnel."""


class Pod:
    """Raises PlatformError when its listeners cannot be bound; then nothing is left behind but the descriptor."""

    def __init__(self, kit: Kit, added: PodAdded, *, accepting: bool, shared: NodeListeners | None) -> None:
        self.kit = kit
        self.added = added
        self.uid = added.uid
        self.capture = added.capture
        self.netns_fd = None if added.capture is CaptureMode.NODE else added.netns_fd
        self.mark = kit.settings.packet_mark
        self.ip = added.ips[0] if added.ips else ""
        self.closed = False
        self.original_source = self._may_preserve_source()
        """Whether applications see their client's address."""
        self._shared = shared
        self._workload: Workload | None = None
        self._revision = -1
        self._listeners: list[Listener] = []
        self._bound: list[tuple[socket.socket, Take]] = []
        self.outbound = Outbound(kit, self)
        self.inbound = Inbound(kit, self)
        self.passthrough = Passthrough(kit, self)
        if shared is None:
            self._bind()
        else:
            shared.add(self)
        kit.joins.add_pod(added.ips)
        if accepting:
            self.accept()
        self.kit.certificates.warm_up(self.identity())

    def __repr__(self) -> str:
        return f"<Pod {self.added.namespace}/{self.added.name}, {self.capture.value}>"

    # ---- the control half's order ----

    def told(self) -> PodAdded:
        """As the control half described it, without the descriptor."""
        return msgspec.structs.replace(self.added, netns_fd=None)

    def continues(self, added: PodAdded) -> bool:
        """Whether this is the very pod that is served here; then its descriptor is not needed, and is closed."""
        own, its = self.added.netns_fd, added.netns_fd
        if (own is None) != (its is None):
            return False
        if own is not None and its is not None and netns_id(own) != netns_id(its):
            return False
        same = msgspec.structs.replace(added, netns_fd=own)
        if msgspec.structs.replace(same, memo=self.added.memo) != self.added:
            return False
        self.added = same
        if its is not None:
            os.close(its)
        return True

    # ---- who it is ----

    def workload(self) -> Workload | None:
        """The mesh's view of this pod; looked up again only when the mesh has changed."""
        store = self.kit.store
        if self._revision != store.revision:
            self._revision = store.revision
            self._workload = store.workload_of(self.added.namespace, self.added.name, self.added.service_account)
        return self._workload

    def identity(self) -> Identity:
        workload = self.workload()
        if workload is not None:
            return workload.identity
        return Identity(self.kit.settings.trust_domain, self.added.namespace, self.added.service_account)

    async def wait_for_workload(self) -> Workload:
        """Raises UpstreamError when it stays unknown."""
        workload = self.workload()
        if workload is not None:
            return workload
        changed = trio.Event()
        unsubscribe = self.kit.store.subscribe(lambda _slice: changed.set())
        try:
            with trio.move_on_after(WORKLOAD_WAIT):
                while True:
                    await changed.wait()
                    changed = trio.Event()
                    workload = self.workload()
                    if workload is not None:
                        return workload
        finally:
            unsubscribe()
        raise UpstreamError(
            f"workload {self.added.namespace}/{self.added.name} ({self.added.service_account}) is not known",
            hint="`ztunnel show workloads` lists what is known; the names must be equal",
        )

    # ---- listeners ----

    def _bind(self) -> None:
        settings = self.kit.settings
        roles = (
            (settings.outbound_port, self.outbound.take),
            (settings.inbound_plaintext_port, self.passthrough.take),
            (settings.inbound_port, self.inbound.take),
        )
        try:
            for port, take in roles:
                self._bound.append((bind(self.kit, port, self.netns_fd, self.mark, self.capture), take))
        except PlatformError:
            for sock, _ in self._bound:
                sock.close()
            raise

    def accept(self) -> None:
        """Begin to take connections."""
        if self._shared is not None:
            self._shared.accept()
        for sock, take in self._bound:
            self._listeners.append(Listener(self.kit.loop, sock, take))
        self._bound.clear()

    def _may_preserve_source(self) -> bool:
        """Whether applications see their client's address (ENABLE_ORIG_SRC).

        Answers to such an address come back to us only by the capture rules' marks, so without a mark the kernel
        is not even asked. Raises PlatformError when it must be possible and is not.
        """
        wanted = self.kit.settings.enable_orig_src
        if wanted is False or (wanted is None and self.mark is None):
            return False
        try:
            with new_tcp_socket(socket.AF_INET, self.netns_fd, self.mark) as probe:
                set_transparent(probe)
        except PlatformError:
            if wanted:
                raise
            return False
        return True

    def stop_accepting(self) -> None:
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        for sock, _ in self._bound:
            sock.close()
        self._bound.clear()
        if self._shared is not None:
            self._shared.discard(self)

    def drain(self) -> None:
        """No new connections; tunnels close as they fall empty."""
        self.stop_accepting()
        self.inbound.drain()
        self.outbound.pool.drain()

    def close(self, why: str) -> None:
        """Everything at once."""
        self.closed = True
        self.kit.joins.remove_pod(self.added.ips)
        self.stop_accepting()
        for carried in self.kit.connections.of_pod(self):
            carried.abort(why)
        self.inbound.close(why)
        self.outbound.pool.close(why)
        if self.added.netns_fd is not None:
            os.close(self.added.netns_fd)


def bind(kit: Kit, port: int, netns: int | None, mark: int | None, capture: CaptureMode) -> socket.socket:
    """A listener of a pod; transparent where connections keep their original destination as their own address."""
    settings = kit.settings
    sock = listen_tcp(
        ip=None,
        port=port,
        netns=netns,
        mark=mark,
        transparent=capture in (CaptureMode.TPROXY, CaptureMode.NODE),
        reuse_port=settings.inpod_port_reuse and not settings.dedicated,
        backlog=LISTEN_BACKLOG,
        ipv6=settings.ipv6_enabled,
    )
    try:
        kit.socket_options.apply(sock)  # accepted sockets inherit them, which saves six calls per connection
    except OSError as error:
        sock.close()
        raise PlatformError(
            f"cannot use congestion control {settings.tcp_congestion!r} (TCP_CONGESTION): {error.strerror}",
            hint="`sysctl net.ipv4.tcp_available_congestion_control` lists what this kernel has loaded",
        ) from error
    return sock


class NodeListeners:
    """The listeners in the node's own namespace, shared by all pods that are captured there."""

    def __init__(self, kit: Kit) -> None:
        self._kit = kit
        self._pods: dict[str, Pod] = {}
        self._bound: list[tuple[socket.socket, Take]] = []
        self._listeners: list[Listener] = []

    def add(self, pod: Pod) -> None:
        if not self._bound and not self._listeners:
            self._bind()
        for ip in pod.added.ips:
            self._pods[ip] = pod

    def discard(self, pod: Pod) -> None:
        for ip in pod.added.ips:
            if self._pods.get(ip) is pod:
                del self._pods[ip]
        if not self._pods:
            for listener in self._listeners:
                listener.close()
            self._listeners.clear()
            for sock, _ in self._bound:
                sock.close()
            self._bound.clear()

    def accept(self) -> None:
        """Begin to take connections; again changes nothing."""
        self._listeners += [Listener(self._kit.loop, sock, take) for sock, take in self._bound]
        self._bound.clear()

    def _bind(self) -> None:
        settings = self._kit.settings
        roles: tuple[tuple[int, Take], ...] = (
            (settings.outbound_port, self._taker(_source_ip, lambda pod: pod.outbound.take)),
            (settings.inbound_plaintext_port, self._taker(_own_ip, lambda pod: pod.passthrough.take)),
            (settings.inbound_port, self._taker(_own_ip, lambda pod: pod.inbound.take)),
        )
        try:
            for port, take in roles:
                self._bound.append((bind(self._kit, port, None, settings.packet_mark, CaptureMode.NODE), take))
        except PlatformError:
            for sock, _ in self._bound:
                sock.close()
            self._bound.clear()
            raise

    def _taker(self, names: Callable[[socket.socket, Any], str], role: Callable[[Pod], Take]) -> Take:
        """Gives a connection to the pod that one of its addresses names."""

        def take(sock: socket.socket, peer: Any) -> None:
            pod = self._pods.get(names(sock, peer))
            if pod is not None:
                role(pod)(sock, peer)
                return
            abort_on_close(sock)  # of no pod that is enrolled: it should not have been captured
            self._kit.loop.close(sock)

        return take


def _source_ip(_sock: socket.socket, peer: Any) -> str:
    return from_sockaddr(peer).ip


def _own_ip(sock: socket.socket, _peer: Any) -> str:
    return from_sockaddr(sock.getsockname()).ip
