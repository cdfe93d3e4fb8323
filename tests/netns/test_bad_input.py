"""Peers and clients that misbehave: a clear refusal, a bounded cost, nothing else disturbed, nothing left."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import msgspec
import pytest
from mesh_pki import MeshPki
from netns_builder import Acceptor, Topology
from OpenSSL import SSL
from path_mesh import (
    CLIENT_ID,
    MARK,
    SERVER_ID,
    SERVER_IP,
    SETTINGS,
    VIP,
    Path,
    is_reset,
    open_connections,
    open_sockets,
    path,
    read_all,
    read_exactly,
    reset,
    run,
    status,
    until,
)
from raw_peers import HboneClient, hbone_server

from ztunnel.config.settings import Settings
from ztunnel.core.model.flow import Flow
from ztunnel.core.wire import frames
from ztunnel.link.messages import CertificateIssued
from ztunnel.worker.engine.h2 import Settings as TunnelSettings
from ztunnel.worker.proxy import kit

HASTY = msgspec.structs.replace(SETTINGS, tls_handshake_timeout=0.3, http2_preface_timeout=0.3)
THRIFTY = msgspec.structs.replace(SETTINGS, pool_unused_release_timeout=0.2)
CONNECT = frames.encode_headers([(":method", "CONNECT"), (":authority", f"{SERVER_IP}:8080")])
EMPTY_SETTINGS = frames.frame(frames.SETTINGS, 0, 0)


@asynccontextmanager
async def undisturbed(topology: Topology, near: Settings = SETTINGS, far: Settings = HASTY) -> AsyncIterator[Path]:
    """A mesh in which a good connection works before, during and after, and in which nothing is left in the end."""
    async with path(topology, near=near, far=far) as p:
        with Acceptor(p.server, None, 8080):
            before, during = await p.connect(), await p.connect()
            for sock in (before, during):  # both ends of both are open before anything is counted
                await echoes(sock)
            at_first = (await status(p.near))["tunnels"], (await status(p.far))["tunnels"]
            sockets = open_sockets()
            yield p
            await echoes(during)
            await until(lambda: not open_sockets() - sockets)
            assert at_first == ((await status(p.near))["tunnels"], (await status(p.far))["tunnels"])
            after = await p.connect(SERVER_IP, 8080)
            for sock in (before, during, after):
                await echoes(sock)
                sock.shutdown(socket.SHUT_WR)
                assert await run(read_all, sock) == b""
            await p.near.flow(3)
            assert not await open_connections(p.near)
        await until(lambda: sum(bool(flow.hbone_address) and not flow.error for flow in p.far.flows) >= 3)
        assert not await open_connections(p.far)


async def echoes(sock: socket.socket) -> None:
    await run(sock.sendall, b"good")
    assert await run(read_exactly, sock, 4) == b"good"


async def refused(p: Path, count: int = 1) -> Flow:
    """The far worker's flow of what it refused."""
    found: list[Flow] = []

    def enough() -> bool:
        found[:] = [flow for flow in p.far.flows if flow.error]
        return len(found) >= count

    await until(enough)
    return found[-1]


# ---- 15008 before TLS ----


def _http(sock: socket.socket) -> None:
    sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    read_all(sock)


def _garbage(sock: socket.socket) -> None:
    sock.sendall(bytes(range(256)) * 64)
    read_all(sock)


HALF_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40)


def _half_hello(sock: socket.socket) -> None:
    sock.sendall(HALF_HELLO)
    read_all(sock)


def _huge_record(sock: socket.socket) -> None:
    sock.sendall(b"\x16\x03\x01\xff\xff" + bytes(70_000))
    read_all(sock)


def _old_tls(sock: socket.socket) -> None:
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_max_proto_version(SSL.TLS1_2_VERSION)
    tls = SSL.Connection(context, sock)
    tls.set_connect_state()
    sock.settimeout(None)
    tls.do_handshake()


def _nothing(sock: socket.socket) -> None:
    read_all(sock)


def _leave(sock: socket.socket) -> None:
    sock.close()


def _leave_with_reset(sock: socket.socket) -> None:
    sock.sendall(b"\x16\x03\x01")
    reset(sock)


BEFORE_TLS: dict[str, tuple[Callable[[socket.socket], None], str]] = {
    "http": (_http, "TLS failed: http request"),
    "garbage": (_garbage, "TLS failed: "),
    "half a hello": (_half_hello, "no TLS handshake within 0.3 s"),
    "a huge record": (_huge_record, "TLS failed: "),
    "tls 1.2": (_old_tls, "TLS failed: unsupported protocol"),
    "nothing": (_nothing, "no TLS handshake within 0.3 s"),
    "gone at once": (_leave, "the peer closed the connection"),
    "reset": (_leave_with_reset, "the connection to the peer failed"),
}


@pytest.mark.parametrize("case", BEFORE_TLS)
async def test_15008_before_tls(topology: Topology, case: str) -> None:
    attack, why = BEFORE_TLS[case]
    async with undisturbed(topology) as p:

        def misbehave() -> None:
            with p.stranger.connect(SERVER_IP, 15008, mark=MARK) as sock:
                try:
                    attack(sock)
                except (OSError, SSL.Error):
                    return

        await run(misbehave)
        flow = await refused(p)
    assert why in flow.error
    assert flow.edge == -1
    assert str(flow.destination) == f"{SERVER_IP}:15008"


async def test_a_flood_of_handshakes_that_go_no_further_is_bounded(
    topology: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of too many the oldest go at once, whatever time they have; good peers are served meanwhile."""
    monkeypatch.setattr(kit, "MOST_STRANGERS", 50)
    async with undisturbed(topology, far=SETTINGS) as p:

        def flood() -> list[socket.socket]:
            socks = [p.stranger.connect(SERVER_IP, 15008, mark=MARK) for _ in range(400)]
            for sock in socks:
                with suppress(OSError):
                    sock.sendall(HALF_HELLO)
            return socks

        socks = await run(flood)
        flow = await refused(p, 350)
        good = await p.connect()
        await echoes(good)
        good.close()
        await p.near.flow()
        for sock in socks:
            sock.close()
        await refused(p, 400)
    assert "or before 50 others began" in flow.error


# ---- certificates ----


def _leaves(pki: MeshPki) -> dict[str, tuple[CertificateIssued | None, str]]:
    return {
        "none": (None, "peer did not return a certificate"),
        "expired": (pki.expired(CLIENT_ID), "certificate has expired"),
        "of another CA": (MeshPki().leaf(CLIENT_ID), "certificate of the peer is not valid"),
        "of another trust domain": (
            pki.leaf("spiffe://other.domain/ns/demo/sa/client"),
            "the client is spiffe://other.domain/ns/demo/sa/client, not of trust domain cluster.local",
        ),
        "without a name": (pki.odd([]), "no SPIFFE identity"),
        "with another name": (pki.odd(["https://example.org/"]), "the client is https://example.org/"),
    }


async def test_15008_with_a_wrong_certificate(topology: Topology) -> None:
    async with undisturbed(topology) as p:
        for number, (name, (leaf, why)) in enumerate(_leaves(p.pki).items(), 1):

            def misbehave(leaf: CertificateIssued | None = leaf) -> bool:
                try:
                    with HboneClient(p.stranger, SERVER_IP, leaf, roots=p.pki.roots_pem) as peer:
                        return bool(peer.request(f"{SERVER_IP}:8080"))
                except (ConnectionError, SSL.Error):
                    return False

            assert not await run(misbehave), name
            flow = await refused(p, number)
            assert why in flow.error, name
            assert flow.flag == "TLS_FAILURE", name


async def test_of_several_names_only_one_of_our_trust_domain_counts(topology: Topology) -> None:
    async with undisturbed(topology) as p:
        leaf = p.pki.odd(["spiffe://other.domain/ns/demo/sa/admin", CLIENT_ID])

        def ask() -> int:
            with HboneClient(p.stranger, SERVER_IP, leaf) as peer:
                return peer.request(f"{SERVER_IP}:9")

        assert await run(ask) == 503
        flow = await refused(p)
        assert p.far.edges[flow.edge].source.identity == CLIENT_ID


async def test_a_server_with_a_wrong_certificate_gets_no_request(topology: Topology) -> None:
    async with path(topology, far=None) as p:
        wrong = {name: leaf for name, (leaf, _) in _leaves(p.pki).items() if leaf is not None}
        wrong["expired"] = p.pki.expired(SERVER_ID)
        wrong["of another CA"] = MeshPki().leaf(SERVER_ID)
        async with hbone_server(p.server, p.pki.leaf(SERVER_ID)) as peer:
            for number, (name, leaf) in enumerate(wrong.items(), 1):
                peer.leaf = leaf
                assert await p.is_refused(), name
                flow = await p.near.flow(number)
                assert flow.flag == "TLS_FAILURE", name
            assert not peer.requests
            peer.leaf = p.pki.leaf(SERVER_ID)
            await p.connect()
            await until(lambda: peer.applications)


@pytest.mark.parametrize("says", [b"HTTP/1.1 200 OK\r\n\r\n", bytes(70_000), b"\x15\x03\x03\x00\x02\x02\x28", b""])
async def test_a_server_that_speaks_no_tls(topology: Topology, says: bytes) -> None:
    async with path(topology, near=HASTY, far=None) as p:
        server = p.application(15008)
        client = await p.connect()
        served = await server.accept()
        await run(served.sendall, says)
        assert await run(is_reset, client)
        assert (await p.near.flow()).error
        assert (await status(p.near))["tunnels"] == 0


# ---- 15008 after TLS ----


def _opened(*more: bytes) -> bytes:
    """HTTP/2 as it begins, and then something else."""
    return b"".join((frames.PREFACE, EMPTY_SETTINGS, *more))


def _headers(stream: int, block: bytes = CONNECT, flags: int = frames.END_HEADERS) -> bytes:
    return frames.frame(frames.HEADERS, flags, stream, block)


def _head(length: int, kind: int, stream: int) -> bytes:
    """The beginning of a frame that never comes."""
    return length.to_bytes(3, "big") + bytes((kind, frames.END_HEADERS)) + stream.to_bytes(4, "big")


AFTER_TLS = {
    "http/1.1": (b"GET / HTTP/1.1\r\n\r\n", "does not speak HTTP/2"),
    "garbage": (bytes(range(1, 256)) * 8, "does not speak HTTP/2"),
    "no settings": (frames.PREFACE + _headers(1), "the first frame is not SETTINGS"),
    "data without a stream": (_opened(frames.frame(frames.DATA, 0, 1, b"x")), "DATA for idle stream 1"),
    "data for the connection": (_opened(frames.frame(frames.DATA, 0, 0, b"x")), "DATA for idle stream 0"),
    "an even stream": (_opened(_headers(2)), "stream 2"),
    "a huge frame": (_opened(_head(0x7FFFFF, frames.DATA, 1)), "DATA of"),
    "huge headers": (_opened(_head(1 << 20, frames.HEADERS, 1)), "header block of"),
    "endless headers": (
        _opened(_headers(1, b"", 0), *(frames.frame(frames.CONTINUATION, 0, 1, b"\x00") for _ in range(100))),
        "too many pieces",
    ),
    "an interrupted header block": (_opened(_headers(1, b"", 0), frames.ping(b"12345678")), "interrupted"),
    "broken header compression": (_opened(_headers(1, b"\xff\xff\xff\xff\xff\xff")), "header compression"),
    "push": (_opened(frames.frame(frames.PUSH_PROMISE, 4, 1, bytes(4))), "PUSH_PROMISE"),
    "a window that overflows": (_opened(*[frames.window_update(0, 0x7FFFFFFF)] * 2), "window"),
    "a window of nothing": (_opened(frames.window_update(0, 0)), "window"),
    "settings of odd length": (_opened(frames.frame(frames.SETTINGS, 0, 0, b"12345")), "broke HTTP/2"),
    "a flood of pings": (_opened(*[frames.ping(b"12345678")] * 20_000), "too many SETTINGS and PING"),
    "a flood of settings": (_opened(*[EMPTY_SETTINGS] * 20_000), "too many SETTINGS and PING"),
    "a flood of unknown frames": (_opened(*[frames.frame(0x42, 0, 0)] * 20_000), "too many unknown frames"),
    "a flood of empty data": (
        _opened(_headers(1), *[frames.frame(frames.DATA, 0, 1)] * 20_000),
        "too many empty frames",
    ),
    "rapid reset": (
        _opened(*(_headers(n) + frames.rst_stream(n, frames.CANCEL) for n in range(1, 40_001, 2))),
        "too many resets",
    ),
}


@pytest.mark.parametrize("case", AFTER_TLS)
async def test_15008_after_tls(topology: Topology, case: str) -> None:
    attack, why = AFTER_TLS[case]
    async with undisturbed(topology) as p:

        def misbehave() -> None:
            with HboneClient(p.client, SERVER_IP, p.pki.leaf(CLIENT_ID), preface=False) as peer:
                try:
                    for at in range(0, len(attack), 65536):
                        peer.send_raw(attack[at : at + 65536])
                    while peer.read_raw():
                        pass
                except (OSError, SSL.Error):
                    return

        await run(misbehave)
        await until(lambda: any(why in flow.error for flow in p.far.flows))
        flow = next(flow for flow in p.far.flows if why in flow.error)
    assert flow.flag == "H2_HANDSHAKE_FAILURE"


async def test_headers_beyond_what_we_announce_get_431(topology: Topology) -> None:
    async with undisturbed(topology) as p:

        def misbehave() -> int:
            with HboneClient(p.client, SERVER_IP, p.pki.leaf(CLIENT_ID)) as peer:
                stream = peer.open(f"{SERVER_IP}:8080", *[("x", "")] * 2200)
                return peer.status(stream)

        assert await run(misbehave) == 431


async def test_thousands_of_streams_at_once_are_refused_beyond_the_limit(topology: Topology) -> None:
    async with undisturbed(topology) as p:
        limit, asked = TunnelSettings().max_streams, 1000
        app = p.application(9000)

        def misbehave() -> set[int]:
            with HboneClient(p.client, SERVER_IP, p.pki.leaf(CLIENT_ID), preface=False) as peer:
                block = frames.encode_headers([(":method", "CONNECT"), (":authority", f"{SERVER_IP}:9000")])
                peer.send_raw(_opened(*(_headers(number, block) for number in range(1, 2 * asked, 2))))
                resets = [peer.frame(frames.RST_STREAM) for _ in range(asked - limit)]
                assert {int.from_bytes(code, "big") for _, code in resets} == {frames.REFUSED_STREAM}
                return {stream for stream, _ in resets}

        assert await run(misbehave) == set(range(2 * limit + 1, 2 * asked, 2))
        await until(lambda: sum(flow.hbone_address.endswith(":9000") for flow in p.far.flows) == limit)
        app.close()


# ---- captured clients ----


@pytest.mark.parametrize("listener", [15001, 15006])
async def test_clients_that_come_and_go_leave_nothing(topology: Topology, listener: int) -> None:
    async with undisturbed(topology, near=THRIFTY) as p:
        at, ip, port = (p.client, VIP, 80) if listener == 15001 else (p.stranger, SERVER_IP, 8080)
        worker = p.near if listener == 15001 else p.far

        def come_and_go() -> None:
            for number in range(200):
                with at.connect(ip, port) as sock:
                    if number % 3 == 0:
                        sock.sendall(b"x")
                    if number % 2:
                        reset(sock)

        await run(come_and_go)
        await worker.flow(200)


async def test_a_client_that_drips_is_served_as_slowly_as_it_likes(topology: Topology) -> None:
    async with undisturbed(topology) as p:
        sock = await p.connect()
        for byte in b"slowly":
            await run(sock.send, bytes([byte]))
            assert await run(sock.recv, 10) == bytes([byte])
        sock.close()
        await p.near.flow()


async def test_a_peer_that_drips_its_handshake_has_no_more_time_than_others(topology: Topology) -> None:
    async with undisturbed(topology) as p:

        def drip() -> None:
            with p.stranger.connect(SERVER_IP, 15008, mark=MARK) as sock:
                sock.settimeout(0.02)
                for byte in b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(400):
                    try:
                        sock.send(bytes([byte]))
                        if not sock.recv(1):
                            return
                    except TimeoutError:
                        continue
                    except OSError:
                        return
                raise AssertionError("it was listened to for eight seconds")

        await run(drip)
        assert "no TLS handshake within 0.3 s" in (await refused(p)).error
