"""Sockets carry their options and belong to the namespace they were asked for."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator

import pytest
from netns_builder import Topology

from ztunnel.core.errors import PlatformError
from ztunnel.linux import sockets
from ztunnel.linux.constants import IP_FREEBIND, IP_TRANSPARENT, IPV6_FREEBIND, IPV6_TRANSPARENT
from ztunnel.linux.netns import bring_up_loopback, create_netns, in_netns


@pytest.fixture
def elsewhere(namespaces: None) -> Iterator[int]:
    fd = create_netns()
    with in_netns(fd):
        bring_up_loopback()
    yield fd
    os.close(fd)


def option(sock: socket.socket, level: int, name: int) -> int:
    return sock.getsockopt(level, name)


def test_a_client_socket_is_ready_for_the_loop(elsewhere: int) -> None:
    with sockets.new_tcp_socket(socket.AF_INET, elsewhere, 0x539) as sock:
        assert not sock.getblocking()
        assert not sock.get_inheritable()
        assert option(sock, socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert option(sock, socket.SOL_SOCKET, socket.SO_MARK) == 0x539


def test_a_plain_socket_is_of_its_namespace_and_marked(elsewhere: int) -> None:
    sock = sockets.new_plain_socket(socket.AF_INET, elsewhere, 0x539)
    try:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == 0x539
        assert not sock.getblocking()
        assert not os.get_inheritable(sock.fileno())
        with sockets.new_tcp_socket(socket.AF_INET, elsewhere) as server:
            server.bind(("127.0.0.1", 0))
            server.listen()
            assert sock.connect_ex(server.getsockname()) in (0, errno.EINPROGRESS)
    finally:
        sock.close()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_an_accepted_socket_is_ready_for_the_loop(family: socket.AddressFamily) -> None:
    with sockets.listen_tcp(ip="127.0.0.1" if family == socket.AF_INET else "::1", port=0) as server:
        with pytest.raises(BlockingIOError):
            sockets.accept(server, family)
        client = socket.create_connection(server.getsockname()[:2], 5)  # noqa: TID251 - a client of the test
        sock, peer = sockets.accept(server, family)
        with client:
            assert peer == client.getsockname() == sock.getpeername()
            assert sock.family == family
            assert not sock.getblocking()
            assert not os.get_inheritable(sock.fileno())
        sock.close()


def test_sockets_belong_to_their_namespace(elsewhere: int) -> None:
    with sockets.listen_tcp(ip="127.0.0.1", port=0, netns=elsewhere) as listener:
        made = sockets.new_tcp_sockets(3, socket.AF_INET, elsewhere)
        try:
            for sock in made:
                sock.setblocking(True)
                sock.connect(listener.getsockname())
            with sockets.new_tcp_socket(socket.AF_INET) as at_home:
                at_home.setblocking(True)
                with pytest.raises(ConnectionRefusedError):
                    at_home.connect(listener.getsockname())
        finally:
            for sock in made:
                sock.close()


def test_the_wildcard_is_dual_stack(elsewhere: int) -> None:
    with sockets.listen_tcp(ip=None, port=0, netns=elsewhere) as listener:
        port = listener.getsockname()[1]
        for ip in ("127.0.0.1", "::1"):
            family = socket.AF_INET6 if ":" in ip else socket.AF_INET
            with sockets.new_tcp_socket(family, elsewhere) as sock:
                sock.setblocking(True)
                sock.connect((ip, port))


@pytest.mark.parametrize("scope", ["all", "lo"])
def test_the_wildcard_is_ipv4_where_that_namespace_has_no_ipv6(elsewhere: int, scope: str) -> None:
    with in_netns(elsewhere), open(f"/proc/sys/net/ipv6/conf/{scope}/disable_ipv6", "w") as sysctl:
        sysctl.write("1")
    with sockets.listen_tcp(ip=None, port=0, netns=elsewhere) as listener:
        assert listener.getsockname()[0] == "0.0.0.0"
    with sockets.listen_tcp(ip=None, port=0) as at_home:
        assert at_home.getsockname()[0] == "::"


def test_ipv6_can_be_switched_off() -> None:
    with sockets.listen_tcp(ip=None, port=0, ipv6=False) as listener:
        assert listener.family == socket.AF_INET


def test_two_agents_share_a_port_when_asked(elsewhere: int) -> None:
    with sockets.listen_tcp(ip=None, port=0, netns=elsewhere, reuse_port=True) as old:
        port = old.getsockname()[1]
        with sockets.listen_tcp(ip=None, port=port, netns=elsewhere, reuse_port=True) as new:
            assert new.getsockname()[1] == port


def test_a_taken_port_is_refused_with_a_hint(elsewhere: int) -> None:
    with sockets.listen_tcp(ip="127.0.0.1", port=0, netns=elsewhere) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PlatformError, match=f"cannot listen on 127.0.0.1:{port}") as refused:
            sockets.listen_tcp(ip="127.0.0.1", port=port, netns=elsewhere)
        assert "ss -ltnp" in refused.value.hint


def test_a_mark_has_32_bits(elsewhere: int) -> None:
    with sockets.new_tcp_socket(socket.AF_INET, elsewhere, 2**32 - 1) as sock:
        assert option(sock, socket.SOL_SOCKET, socket.SO_MARK) & 0xFFFFFFFF == 2**32 - 1


def test_a_transparent_listener_is_so_in_both_families(elsewhere: int) -> None:
    with sockets.listen_tcp(ip=None, port=0, netns=elsewhere, transparent=True, mark=7) as sock:
        assert option(sock, socket.IPPROTO_IPV6, IPV6_TRANSPARENT) == 1
        assert option(sock, socket.IPPROTO_IP, IP_TRANSPARENT) == 1
        assert option(sock, socket.SOL_SOCKET, socket.SO_MARK) == 7


@pytest.mark.parametrize(("family", "foreign"), [(socket.AF_INET, "192.0.2.7"), (socket.AF_INET6, "2001:db8::7")])
def test_a_transparent_socket_takes_a_foreign_address(elsewhere: int, family: int, foreign: str) -> None:
    with sockets.new_tcp_socket(family, elsewhere) as sock:
        sockets.set_transparent(sock)
        sock.bind((foreign, 0))
        assert sock.getsockname()[0] == foreign
        level, name = (
            (socket.IPPROTO_IPV6, IPV6_FREEBIND) if family == socket.AF_INET6 else (socket.IPPROTO_IP, IP_FREEBIND)
        )
        assert option(sock, level, name) == 1


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1"])
def test_a_connection_that_was_not_redirected_has_no_original_destination(elsewhere: int, ip: str) -> None:
    with sockets.listen_tcp(ip=None, port=0, netns=elsewhere) as listener:
        client = sockets.new_tcp_socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, elsewhere)
        client.setblocking(True)
        client.connect((ip, listener.getsockname()[1]))
        accepted, _ = listener.accept()
        with client, accepted:
            assert sockets.original_destination(accepted) is None


@pytest.mark.parametrize(("family", "table"), [("4", "ip"), ("6", "ip6")])
@pytest.mark.parametrize("wildcard", [True, False], ids=["dual-stack", "one family"])
def test_the_original_destination_of_a_redirected_connection(
    topology: Topology, family: str, table: str, wildcard: bool
) -> None:
    pod = topology.pod("pod", "10.0.1.2", "fd00:1::2")
    rule = "chain c { type nat hook output priority -100; tcp dport 8080 redirect to :15001\n}"
    pod.run(["nft", "-f", "-"], stdin=f"table {table} t {{\n{rule}\n}}\n")
    wanted = "192.0.2.9" if family == "4" else "2001:db8::9"
    where = None if wildcard else ("0.0.0.0" if family == "4" else "::")
    with (
        sockets.listen_tcp(ip=where, port=15001, netns=pod.fd) as listener,
        pod.connect(wanted, 8080),
    ):
        accepted, _ = listener.accept()
        with accepted:
            found = sockets.original_destination(accepted)
    assert found is not None
    assert tuple(found) == (wanted, 8080)
