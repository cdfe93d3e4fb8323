"""Each mode really captures, with each backend, in both families; plain listeners play the agent.

The agent's side is what the proxy will do: its listeners carry the mark and are transparent, and the original
destination comes from connection tracking (REDIRECT) or is the accepted socket's own address (TPROXY).
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from netns_builder import Acceptor, Namespace, Pod, Topology

from ztunnel.core.model.address import from_sockaddr
from ztunnel.core.model.capture import CaptureMode
from ztunnel.linux import sockets
from ztunnel.linux.redirect.apply import apply
from ztunnel.linux.redirect.model import Backend, CaptureSpec

MARK = 0x539
BACKENDS = [pytest.param(backend, id=backend.value) for backend in Backend]
MODES = [pytest.param(mode, id=mode.value) for mode in (CaptureMode.REDIRECT, CaptureMode.TPROXY, CaptureMode.NODE)]
IN_POD = MODES[:2]
FAMILIES = [pytest.param(0, id="ipv4"), pytest.param(1, id="ipv6")]


class Network:
    """A captured client and server on one node, a stranger on another, and an address that nobody has."""

    def __init__(self, topology: Topology, mode: CaptureMode) -> None:
        self.mode = mode
        self.client = topology.pod("client", "10.0.1.2", "fd00:1::2")
        self.server = topology.pod("server", "10.0.1.3", "fd00:1::3")
        self.stranger = topology.pod("stranger", "10.0.2.2", "fd00:2::2", node=topology.node("node2"))
        self.node = self.client.node
        self.nowhere = ("192.0.2.10", "2001:db8::10")

    def agent_of(self, pod: Pod) -> Namespace:
        """Where the agent that captures the pod listens."""
        return self.node if self.mode is CaptureMode.NODE else pod

    def capture(self, backend: Backend, **options: object) -> None:
        if self.mode is CaptureMode.NODE:
            options["pod_interfaces"] = (self.client.device, self.server.device)
            options["pod_ips"] = (*self.client.addresses, *self.server.addresses)
        spec = CaptureSpec(mode=self.mode, **options)  # type: ignore[arg-type]
        for namespace in {self.agent_of(self.client), self.agent_of(self.server)}:
            apply(spec, namespace.fd, backend)

    def original(self, sock: socket.socket) -> object:
        if self.mode is CaptureMode.REDIRECT:
            return sockets.original_destination(sock)
        return from_sockaddr(sock.getsockname())

    @contextmanager
    def agent(self, pod: Pod) -> Iterator[dict[int, Acceptor]]:
        """The agent's three listeners; each greets with its port."""
        with ExitStack() as stack:
            yield {
                port: stack.enter_context(
                    Acceptor(
                        self.agent_of(pod),
                        None,
                        port,
                        banner=b"%d" % port,
                        transparent=True,
                        mark=MARK,
                        look=self.original,
                    )
                )
                for port in (15001, 15006, 15008)
            }


def greeting(namespace: Namespace, ip: str, port: int, *, mark: int | None = None) -> bytes:
    """What the one who really answers says first, after an echo proved that bytes go both ways."""
    with namespace.connect(ip, port, mark=mark) as sock:
        said = sock.recv(5)
        sock.sendall(b"there and back")
        got = b""
        while len(got) < 14:
            got += sock.recv(100)
        assert got == b"there and back"
        return said


@pytest.fixture
def network(topology: Topology, mode: CaptureMode) -> Network:
    return Network(topology, mode)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
def test_connections_are_captured_and_their_ends_known(network: Network, backend: Backend) -> None:
    network.capture(backend)
    for family in (0, 1):
        nowhere, client, server = network.nowhere[family], network.client, network.server
        with network.agent(client) as listeners:
            assert greeting(client, nowhere, 8080) == b"15001"
            [seen] = listeners[15001].seen
            assert tuple(seen.note) == (nowhere, 8080)  # type: ignore[arg-type]
            assert seen.peer.ip in (client.addresses[family], "127.0.0.1", "::1")
            if network.mode is not CaptureMode.REDIRECT:
                assert seen.peer.ip == client.addresses[family]
        with network.agent(server) as listeners, Acceptor(server, None, 80, banner=b"app"):
            assert greeting(network.stranger, server.addresses[family], 80) == b"15006"
            [seen] = listeners[15006].seen
            assert tuple(seen.note) == (server.addresses[family], 80)  # type: ignore[arg-type]
            assert seen.peer.ip == network.stranger.addresses[family]
            assert greeting(network.stranger, server.addresses[family], 15008) == b"15008"
            [seen] = listeners[15008].seen
            assert seen.local == (server.addresses[family], 15008)
            assert seen.peer.ip == network.stranger.addresses[family]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
def test_the_agents_own_connections_are_not_captured(network: Network, backend: Backend) -> None:
    network.capture(backend)
    server, stranger = network.server, network.stranger
    agent = network.agent_of(server)
    for family in (0, 1):
        with (
            network.agent(server),
            Acceptor(stranger, None, 80, banner=b"far"),
            Acceptor(server, None, 80, banner=b"app"),
        ):
            assert greeting(agent, stranger.addresses[family], 80, mark=MARK)[:3] == b"far"
            assert greeting(agent, server.addresses[family], 80, mark=MARK)[:3] == b"app"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
def test_the_application_may_be_shown_the_clients_address(network: Network, backend: Backend) -> None:
    """The agent speaks from an address that is not its own, and the answers come back to it."""
    network.capture(backend)
    server = network.server
    agent = network.agent_of(server)
    for family in (0, 1):
        shown = network.stranger.addresses[family]
        with network.agent(server), Acceptor(server, None, 80, banner=b"app") as app:
            kind = socket.AF_INET6 if family else socket.AF_INET
            with sockets.new_tcp_socket(kind, agent.fd, MARK) as sock:
                sockets.set_transparent(sock)
                sock.settimeout(5)
                sock.bind((shown, 0))
                sock.connect((server.addresses[family], 80))
                assert sock.recv(3) == b"app"
                sock.sendall(b"x")
                assert sock.recv(1) == b"x"
            assert [seen.peer.ip for seen in app.seen] == [shown]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
def test_what_is_excluded_is_left_alone(network: Network, backend: Backend) -> None:
    stranger, server = network.stranger, network.server
    network.capture(
        backend,
        exclude_outbound_ports=(81,),
        exclude_outbound_cidrs=("10.0.2.0/24", "fd00:2::/64"),
        exclude_inbound_ports=(82,),
        exclude_inbound_cidrs=(*stranger.node.addresses,),
    )
    for family in (0, 1):
        with ExitStack() as stack:
            stack.enter_context(network.agent(server))
            for port in (80, 82):
                stack.enter_context(Acceptor(server, None, port, banner=b"app"))
            stack.enter_context(Acceptor(stranger, None, 83, banner=b"far"))
            node = stack.enter_context(Acceptor(stranger.node, None, 81, banner=b"far"))
            assert greeting(server, stranger.node.addresses[family], 81)[:3] == b"far"
            assert node.seen[0].peer.ip == server.addresses[family]
            assert greeting(server, stranger.addresses[family], 83)[:3] == b"far"
            assert greeting(server, stranger.node.addresses[family], 84) == b"15001"
            assert greeting(stranger, server.addresses[family], 82)[:3] == b"app"
            assert greeting(stranger.node, server.addresses[family], 80)[:3] == b"app"
            assert greeting(stranger, server.addresses[family], 80) == b"15006"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", IN_POD)
def test_an_excluded_user_is_left_alone(network: Network, backend: Backend) -> None:
    """This process's own user, because a user namespace has no other."""
    network.capture(backend, exclude_uids=(0,))
    with network.agent(network.client), Acceptor(network.stranger, None, 80, banner=b"far"):
        for family in (0, 1):
            assert greeting(network.client, network.stranger.addresses[family], 80)[:3] == b"far"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", IN_POD)
def test_the_pods_own_and_loopback_addresses_are_left_alone(network: Network, backend: Backend) -> None:
    network.capture(backend)
    client = network.client
    with network.agent(client), Acceptor(client, None, 80, banner=b"own"):
        for ip in (*client.addresses, "127.0.0.1", "::1"):
            assert greeting(client, ip, 80)[:3] == b"own"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
def test_without_an_agent_nothing_gets_through(network: Network, backend: Backend) -> None:
    """Fail closed: an agent that is gone is no way around it."""
    network.capture(backend)
    with Acceptor(network.server, None, 80, banner=b"app"), Acceptor(network.stranger, None, 80, banner=b"far"):
        for family in (0, 1):
            with pytest.raises(OSError):
                network.client.connect(network.stranger.addresses[family], 80, timeout=0.1)
            with pytest.raises(OSError):
                network.stranger.connect(network.server.addresses[family], 80, timeout=0.1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", IN_POD)
def test_dns_goes_to_the_dns_port(network: Network, backend: Backend) -> None:
    network.capture(backend, dns=True)
    client = network.client
    for family in (0, 1):
        kind = socket.AF_INET6 if family else socket.AF_INET
        with ExitStack() as stack:
            stack.enter_context(network.agent(client))
            stack.enter_context(Acceptor(client, None, 15053, banner=b"15053", mark=MARK))
            udp = stack.enter_context(client.socket(kind, socket.SOCK_DGRAM))
            server = stack.enter_context(client.socket(kind, socket.SOCK_DGRAM))
            server.bind(("::1" if family else "127.0.0.1", 15053))  # a wildcard would answer from another address
            sockets.set_mark(server, MARK)
            server.settimeout(5)
            udp.settimeout(5)
            udp.connect((network.nowhere[family], 53))
            udp.send(b"question")
            question, whence = server.recvfrom(100)
            assert question == b"question"
            server.sendto(b"answer", whence)
            assert udp.recv(100) == b"answer"
            assert greeting(client, network.nowhere[family], 53) == b"15053"
            assert greeting(client, network.nowhere[family], 54) == b"15001"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", IN_POD)
def test_a_gateway_sees_its_clients_uncaptured(network: Network, backend: Backend) -> None:
    network.capture(backend, inbound=False)
    server = network.server
    with network.agent(server), Acceptor(server, None, 80, banner=b"app"):
        for family in (0, 1):
            assert greeting(network.stranger, server.addresses[family], 80)[:3] == b"app"
            assert greeting(server, network.nowhere[family], 80) == b"15001"
