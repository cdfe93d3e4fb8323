"""A small network made of namespaces: nodes on one fabric, pods on nodes. For the demo, the benches and the tests.

    fabric (a bridge) ── eth0 node1 ── p-client ═══ eth0 client
                      └─ eth0 node2 ── p-server ═══ eth0 server

Pods are routed, not bridged, as Calico and the clouds do it: a pod owns single addresses (/32, /128), its default
route leads to its node (169.254.1.1, fe80::1), and each node knows by route on which node a pod lives. Any address
may therefore be given to any pod.

The namespaces have no names (see `Topology.publish`); they end with the topology, and with them their links,
routes and rules. IPv6 addresses are usable at once (no duplicate address detection).

Everything here blocks for milliseconds: call it from a worker thread. pyroute2 is imported on first use, because
its import is slow.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from socket import AF_INET, AF_INET6, SO_MARK, SOCK_STREAM, SOL_SOCKET
from socket import socket as Socket
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

from ztunnel.core.errors import PlatformError
from ztunnel.linux.netns import bring_up_loopback, create_netns, in_netns, name_netns, unname_netns

GATEWAY4 = "169.254.1.1"
GATEWAY6 = "fe80::1"
_SCOPE_LINK = 253
_IFA_F_NODAD = 0x02
_NAME_LIMIT = 13
"""A link name has at most 15 characters, two of them are the prefix."""

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Namespace:
    """A network namespace of a topology, and what can be done in it."""

    def __init__(self, name: str, ip4: str = "", ip6: str = "") -> None:
        if not 0 < len(name) <= _NAME_LIMIT:
            raise ValueError(
                f"{name!r}: a name of 1 to {_NAME_LIMIT} characters is needed, it becomes part of a link's name"
            )
        self.name = name
        self.ip4 = ip4
        self.ip6 = ip6
        self.fd = create_netns()
        self._children: list[subprocess.Popen[Any]] = []
        self.call(_prepare)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self.ip4} {self.ip6}>"

    @property
    def path(self) -> str:
        """What `open_netns` and `--netns` take, while this process lives."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(ip for ip in (self.ip4, self.ip6) if ip)

    def call(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Run a short function inside, on this thread."""
        with in_netns(self.fd):
            return function(*args, **kwargs)

    def run(
        self, argv: Sequence[str], *, stdin: str | None = None, timeout: float = 20, check: bool = True, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside to its end and return it with its output (text).

        Raises PlatformError with the command's complaint when it fails and `check` is true.
        """
        source = subprocess.DEVNULL if stdin is None else subprocess.PIPE
        pipe = subprocess.PIPE
        child = self.popen(argv, stdin=source, stdout=pipe, stderr=pipe, text=True, **options)
        try:
            with child:
                try:
                    out, err = child.communicate(stdin, timeout)
                except BaseException:
                    child.kill()
                    raise
        finally:
            self._children.remove(child)
        if check and child.returncode:
            complaint = err.strip() or out.strip()
            raise PlatformError(f"{' '.join(argv)} in {self.name} ended with {child.returncode}: {complaint}")
        return subprocess.CompletedProcess(list(argv), child.returncode, out, err)

    def popen(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a command inside; it is killed with the topology if it still runs then."""
        with in_netns(self.fd):
            child: subprocess.Popen[Any] = subprocess.Popen(argv, **options)
        self._children.append(child)
        return child

    def socket(self, family: int = AF_INET, kind: int = SOCK_STREAM) -> Socket:
        """A blocking socket of this namespace."""
        return self.call(Socket, family, kind)

    def connect(self, ip: str, port: int, *, mark: int | None = None, timeout: float = 5) -> Socket:
        """A TCP connection from here. `mark` makes it look like the agent's own."""
        sock = self.socket(AF_INET6 if ":" in ip else AF_INET)
        try:
            sock.settimeout(timeout)
            if mark is not None:
                sock.setsockopt(SOL_SOCKET, SO_MARK, mark)
            sock.connect((ip, port))
        except BaseException:
            sock.close()
            raise
        return sock

    def netlink(self) -> contextlib.AbstractContextManager[Any]:
        """A pyroute2.IPRoute that speaks to this namespace."""
        from pyroute2 import IPRoute

        return self.call(lambda: contextlib.closing(IPRoute()))

    def close(self) -> None:
        for child in self._children:
            if child.poll() is None:
                child.kill()
            child.__exit__(None, None, None)
        self._children.clear()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Node(Namespace):
    """A host: forwards between its pods and the fabric."""


class Pod(Namespace):
    """An application's namespace on a node."""

    def __init__(self, name: str, node: Node, ip4: str, ip6: str) -> None:
        super().__init__(name, ip4, ip6)
        self.node = node
        self.device = f"p-{name}"
        """The node's end of its link."""


class Topology:
    """Builds nodes and pods; everything it made ends with it.

    `congctl` fixes the congestion control on every route, so that measurements can be compared.
    """

    def __init__(self, *, congctl: str | None = None) -> None:
        self._metrics = {"metrics": {"cc_algo": congctl}} if congctl else {}
        self._fabric: Namespace | None = None
        self._published: list[str] = []
        self.nodes: list[Node] = []
        self.pods: list[Pod] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Kill what still runs inside and remove everything."""
        for name in self._published:
            unname_netns(name)
        self._published.clear()
        for namespace in (*self.pods, *self.nodes, *([self._fabric] if self._fabric else [])):
            namespace.close()
        self.pods.clear()
        self.nodes.clear()
        self._fabric = None

    def node(self, name: str) -> Node:
        """A new node, at 172.31.255.N and fd99::N on the fabric."""
        fabric = self._fabric or self._new_fabric()
        number = len(self.nodes) + 1
        node = Node(name, f"172.31.255.{number}", f"fd99::{number:x}")
        self.nodes.append(node)
        with node.netlink() as inside, fabric.netlink() as outside:
            _veth(inside, node.fd, "eth0", fabric.fd, f"n-{name}")
            port = _index(outside, f"n-{name}")
            outside.link("set", index=port, master=_index(outside, "fabric"), state="up")
            eth0 = _index(inside, "eth0")
            inside.link("set", index=eth0, state="up")
            _address(inside, eth0, node.ip4, 24)
            _address(inside, eth0, node.ip6, 64)
            for pod in self.pods:
                self._route_over_fabric(inside, pod)
        node.call(_forward)
        return node

    def pod(self, name: str, ip4: str = "", ip6: str = "", *, node: Node | None = None) -> Pod:
        """A new pod on `node`; without one on the first node, which is made when there is none."""
        host = node or (self.nodes[0] if self.nodes else self.node("node1"))
        pod = Pod(name, host, ip4, ip6)
        self.pods.append(pod)
        with pod.netlink() as inside, host.netlink() as outside:
            _veth(outside, host.fd, pod.device, pod.fd, "eth0")
            device, eth0 = _index(outside, pod.device), _index(inside, "eth0")
            outside.link("set", index=device, state="up")
            inside.link("set", index=eth0, state="up")
            if ip4:
                _address(inside, eth0, ip4, 32)
                _address(outside, device, GATEWAY4, 32)
                inside.route("add", dst=f"{GATEWAY4}/32", oif=eth0, scope=_SCOPE_LINK)
                inside.route("add", dst="0.0.0.0/0", gateway=GATEWAY4, oif=eth0, prefsrc=ip4, **self._metrics)
                outside.route("add", dst=f"{ip4}/32", oif=device, scope=_SCOPE_LINK, prefsrc=host.ip4, **self._metrics)
            if ip6:
                _address(inside, eth0, ip6, 128)
                _address(outside, device, GATEWAY6, 64)
                inside.route("add", dst="::/0", gateway=GATEWAY6, oif=eth0, **self._metrics)
                outside.route("add", dst=f"{ip6}/128", oif=device, **self._metrics)
        for other in self.nodes:
            if other is not host:
                with other.netlink() as netlink:
                    self._route_over_fabric(netlink, pod)
        return pod

    def remove(self, pod: Pod) -> None:
        """The pod goes, as when its last process ends."""
        self.pods.remove(pod)
        with pod.node.netlink() as netlink:
            netlink.link("del", index=_index(netlink, pod.device))
        pod.close()

    def publish(self, namespace: Namespace, name: str) -> None:
        """Give a namespace a name for `ip netns exec` until the topology ends."""
        name_netns(namespace.fd, name)
        self._published.append(name)

    def _new_fabric(self) -> Namespace:
        fabric = self._fabric = Namespace("fabric")
        with fabric.netlink() as netlink:
            netlink.link("add", ifname="fabric", kind="bridge", br_forward_delay=0, br_mcast_snooping=0)
            netlink.link("set", index=_index(netlink, "fabric"), state="up")
        return fabric

    def _route_over_fabric(self, netlink: Any, pod: Pod) -> None:
        if pod.ip4:
            netlink.route("add", dst=f"{pod.ip4}/32", gateway=pod.node.ip4, **self._metrics)
        if pod.ip6:
            netlink.route("add", dst=f"{pod.ip6}/128", gateway=pod.node.ip6, **self._metrics)


def _veth(netlink: Any, near_fd: int, near: str, far_fd: int, far: str) -> None:
    netlink.link("add", ifname=near, kind="veth", net_ns_fd=near_fd, peer={"ifname": far, "net_ns_fd": far_fd})


def _address(netlink: Any, index: int, ip: str, prefix: int) -> None:
    flags = {"flags": _IFA_F_NODAD} if ":" in ip else {}
    netlink.addr("add", index=index, address=ip, prefixlen=prefix, **flags)


def _index(netlink: Any, name: str) -> int:
    return int(netlink.link_lookup(ifname=name)[0])


def _prepare() -> None:
    """What the host's own settings must not decide, and the loopback device."""
    bring_up_loopback()
    for name in _existing("ipv4/conf/{}/rp_filter"):
        name.write_text("0")
    for name in _existing("ipv6/conf/{}/accept_dad"):
        name.write_text("0")


def _forward() -> None:
    for name in (*_existing("ipv4/conf/{}/forwarding"), *_existing("ipv6/conf/{}/forwarding")):
        name.write_text("1")


def _existing(pattern: str) -> Iterator[Path]:
    for scope in ("all", "default"):
        path = Path("/proc/sys/net", pattern.format(scope))
        if path.exists():
            yield path
