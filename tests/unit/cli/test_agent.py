"""A command asks a running agent over HTTP, and says in one sentence why it cannot."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from ztunnel.cli.agent import ask, fetch_dump, parse_dump
from ztunnel.core.errors import ConfigError, UpstreamError


class Agent:
    """Answers one connection with fixed bytes and remembers the request."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.answer = b""
        self.request = b""
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            connection.settimeout(10)
            self.request = connection.recv(65536)
            connection.sendall(self.answer)

    def close(self) -> None:
        if not self.request:
            with socket.socket() as sock:
                sock.connect(self._listener.getsockname())
        self._thread.join(10)
        self._listener.close()


@pytest.fixture
def agent() -> Iterator[Agent]:
    made = Agent()
    yield made
    made.close()


def answer(status: str, body: bytes) -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


def test_status_and_body_come_back(agent: Agent) -> None:
    agent.answer = answer("500 Internal Server Error", b"not ready\n")
    reply = ask(agent.url, "/healthz/ready", method="POST")
    assert (reply.status, reply.text) == (500, "not ready")
    assert agent.request.startswith(b"POST /healthz/ready HTTP/1.1\r\n")


def test_nobody_listening_is_one_sentence_and_a_hint() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with pytest.raises(UpstreamError, match=r"no answer from http://127\.0\.0\.1:") as caught:
        ask(f"http://127.0.0.1:{port}", "/config_dump")
    assert "ztunnel serve" in caught.value.hint


@pytest.mark.parametrize(
    "garbage", [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nshort"]
)
def test_something_else_on_the_port_is_told(agent: Agent, garbage: bytes) -> None:
    agent.answer = garbage
    with pytest.raises(UpstreamError):
        fetch_dump(agent.url)


def test_silence_ends_at_the_time_limit() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(UpstreamError, match="timed out"):
        ask(f"http://127.0.0.1:{silent.getsockname()[1]}", "/", timeout=0.05)


def test_a_refused_dump_names_the_status(agent: Agent) -> None:
    agent.answer = answer("403 Forbidden", b"refused")
    with pytest.raises(UpstreamError, match="answered 403 to /config_dump: refused"):
        fetch_dump(agent.url)


def test_a_dump_is_an_object() -> None:
    assert parse_dump(b'{"workloads": []}', "x") == {"workloads": []}
    for content in (b"[]", b"{", b"\xff"):
        with pytest.raises(UpstreamError, match="x holds no config_dump"):
            parse_dump(content, "x")


@pytest.mark.parametrize(
    "url", ["localhost:15000", "https://x", "http://", "http://x:port", "http://x/path", "http://[x"]
)
def test_only_plain_urls_are_taken(url: str) -> None:
    with pytest.raises(ConfigError, match="is not http://HOST:PORT"):
        ask(url, "/")
