"""All three servers come up together on the addresses of the settings, or say why not."""

from __future__ import annotations

import socket
from functools import partial
from typing import Any

import msgspec
import pytest
import trio

from ztunnel.control.admin import servers
from ztunnel.core.errors import PlatformError
from ztunnel.core.model.address import Address
from ztunnel.linux import sockets

LOCAL = (Address("127.0.0.1", 0),)


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The ports that were bound, in order."""
    ports: list[int] = []

    def listen(**wanted: Any) -> socket.socket:
        sock = sockets.listen_tcp(**wanted)
        ports.append(sock.getsockname()[1])
        return sock

    monkeypatch.setattr(servers, "listen_tcp", listen)
    return ports


async def test_each_port_answers_its_own_questions(
    agent: Any, web: Any, nursery: trio.Nursery, bound: list[int]
) -> None:
    agent.settings = msgspec.structs.replace(
        agent.settings, admin_addr=LOCAL, stats_addr=LOCAL, readiness_addr=(Address("::", 0),)
    )
    await nursery.start(partial(servers.serve, agent.source()))
    for port, path, answer in zip(
        bound, ("/logging", "/metrics", "/healthz/ready"), (b"current log level", b"# text", b"ready\n"), strict=True
    ):
        request = f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode()
        assert answer in await web.exchange(port, request)


async def test_a_taken_port_is_told_and_nothing_stays_open(agent: Any, bound: list[int]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        agent.settings = msgspec.structs.replace(
            agent.settings, admin_addr=LOCAL, stats_addr=LOCAL, readiness_addr=(Address("127.0.0.1", port),)
        )
        with pytest.raises(PlatformError, match=f"cannot listen on 127.0.0.1:{port}"):
            await servers.serve(agent.source())
    for port in bound:
        socket.create_server(("127.0.0.1", port)).close()


async def test_a_loopback_of_a_family_that_is_off_is_passed_over(
    agent: Any, nursery: trio.Nursery, bound: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "has_ipv6", lambda: False)
    both = (*LOCAL, Address("::1", 0))
    agent.settings = msgspec.structs.replace(agent.settings, admin_addr=both, stats_addr=LOCAL, readiness_addr=LOCAL)
    await nursery.start(partial(servers.serve, agent.source()))
    assert len(bound) == 3
