"""TLS of tunnels: what is agreed, who is refused and what both sides are told, for both ways to drive OpenSSL."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from engine_pair import Side, open_stream, socket_pair, tcp_pair
from mesh_pki import CLIENT, STRANGER, WEB, MeshPki
from OpenSSL import SSL

from ztunnel.core.errors import IdentityUnavailable, TlsError
from ztunnel.worker.engine import tls
from ztunnel.worker.engine.ending import Ending
from ztunnel.worker.engine.h2 import Settings, Tunnel
from ztunnel.worker.engine.loop import Loop
from ztunnel.worker.engine.scratch import Scratch
from ztunnel.worker.engine.tls import Context, FastSession, PortableSession, Session

Verify = Callable[[tuple[str, ...]], str | None]


@pytest.fixture(params=[FastSession, PortableSession])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[Session]:
    assert tls.binding_is_known(), "the direct calls were not tested with the installed generations"
    monkeypatch.setattr(tls, "FAST", request.param is FastSession)
    return request.param


@pytest.fixture
def mesh() -> MeshPki:
    return MeshPki()


def accept(names: tuple[str, ...]) -> str | None:
    return None


def expect(identity: object) -> Verify:
    return lambda names: None if str(identity) in names else f"the peer is {', '.join(names) or 'nobody'}"


class Wire:
    """Two sessions, each with its own scratch buffers; records go from the one to the other by hand."""

    def __init__(self, client: Context, server: Context, verify: tuple[Verify, Verify] = (accept, accept)) -> None:
        self.scratch = (Scratch(), Scratch())
        self.client = client.session(self.scratch[0], verify[0])
        self.server = server.session(self.scratch[1], verify[1])

    def sealed(self, side: int, size: int) -> bytes:
        return bytes(self.scratch[side].sealed_view[:size])

    def give(self, side: int, records: bytes, start: int = 0) -> bytes:
        """Show records to a side; the plaintext."""
        scratch, session = self.scratch[side], (self.client, self.server)[side]
        scratch.cipher[: len(records)] = records
        end = session.read(len(records), start) if session.established else session.shake_hands(len(records))
        return bytes(scratch.plain_view[start:end])

    def seal(self, side: int, data: bytes) -> bytes:
        self.scratch[side].clear[: len(data)] = data
        return self.sealed(side, (self.client, self.server)[side].seal(len(data)))

    def shake_hands(self) -> None:
        flight = self.sealed(0, self.client.start())
        for _ in range(4):
            for side, session in ((1, self.server), (0, self.client)):
                if flight:
                    self.give(side, flight)
                flight = self.sealed(side, session.take_output())


@pytest.fixture
def wire(kind: type[Session], mesh: MeshPki) -> Wire:
    wire = Wire(Context(mesh.leaf(CLIENT), server=False), Context(mesh.leaf(WEB), server=True))
    assert type(wire.client) is type(wire.server) is kind
    wire.shake_hands()
    return wire


def test_version_suite_group_and_names_are_the_expected_ones(wire: Wire) -> None:
    expected = {"version": "TLSv1.3", "cipher": "TLS_AES_128_GCM_SHA256", "group": "X25519MLKEM768"}
    assert wire.client.established
    assert wire.server.established
    assert wire.client.facts == expected
    assert wire.server.facts == expected
    assert wire.client.peer_names == (str(WEB),)
    assert wire.server.peer_names == (str(CLIENT),)


def test_bytes_cross_whole_in_any_chunking(wire: Wire) -> None:
    chance = random.Random(7)
    for size in (1, 9, 16_384, 16_385, 300_000, 600_000):
        data = chance.randbytes(size)
        records = wire.seal(0, data)
        got, at = b"", 0
        while at < len(records):
            step = chance.choice([1, 5, 4000, 70_000, 500_000])
            got += wire.give(1, records[at : at + step], start=chance.choice([0, 100]))
            at += step
        assert got == data


def test_small_records_cross_whole_in_every_split(wire: Wire) -> None:
    """Also between reads that are too large to be copied."""
    words = (b"one", b"two", bytes(3000), b"three")
    cut, size = 0, 1
    while cut < size:
        records = b"".join(wire.seal(0, word) for word in words)
        size = len(records)
        assert wire.give(1, records[:cut]) + wire.give(1, records[cut:]) == b"".join(words)
        cut += 1


def test_a_goodbye_is_seen_after_the_last_bytes(wire: Wire) -> None:
    records = wire.seal(1, b"last") + wire.sealed(1, wire.server.close_notify())
    assert wire.give(0, records) == b"last"
    assert wire.client.closed
    assert not wire.server.closed


def test_a_changed_record_is_refused(wire: Wire) -> None:
    records = bytearray(wire.seal(0, b"data"))
    records[-1] ^= 1
    with pytest.raises(TlsError, match="bad record mac"):
        wire.give(1, bytes(records))
    assert wire.server.take_output(), "an alert for the peer"


def test_no_session_tickets_are_sent(wire: Wire) -> None:
    assert wire.server.take_output() == 0


def test_a_failed_handshake_leaves_nothing_behind_for_its_neighbours(wire: Wire, mesh: MeshPki) -> None:
    """OpenSSL's errors belong to the thread: what one connection leaves there, the next would take for its own."""
    tls._lib.ERR_clear_error()
    stranger = SSL.Connection(client_context(mesh, alpn=[b"http/1.1"]), None)
    stranger.set_connect_state()
    with pytest.raises(SSL.WantReadError):
        stranger.do_handshake()
    server = Context(mesh.leaf(WEB), server=True).session(wire.scratch[1], accept)
    hello = stranger.bio_read(65536)
    wire.scratch[1].cipher[: len(hello)] = hello
    with pytest.raises(TlsError, match="no h2"):
        server.shake_hands(len(hello))
    records = wire.seal(0, b"unharmed")
    assert wire.give(1, records[:10]) == b""
    assert wire.give(1, records[10:]) == b"unharmed"


def test_a_certificate_that_cannot_be_used_says_so(mesh: MeshPki) -> None:
    class Mismatched:
        chain_pem = mesh.leaf(WEB).chain_pem
        key_pem = mesh.leaf(CLIENT).key_pem
        roots_pem = mesh.roots_pem

    class Garbage:
        chain_pem = key_pem = roots_pem = b"not a certificate"

    for broken in (Mismatched(), Garbage()):
        with pytest.raises(IdentityUnavailable, match="cannot be used"):
            Context(broken, server=True)


# ---- refusals, over sockets ----


class Meeting:
    """A client and a server tunnel over TCP on one loop; `applications` counts what got past TLS."""

    def __init__(self, client: Context, server: Context, verify: tuple[Verify, Verify] = (accept, accept)) -> None:
        self.loop = Loop()
        self.sides = Side(), Side()
        self.tunnels = []
        for sock, context, check, side in zip(tcp_pair(), (client, server), verify, self.sides, strict=True):
            session = context.session(self.loop.scratch, check)
            is_client = context is client
            self.tunnels.append(Tunnel(self.loop, sock, session, side, Settings(), client=is_client))
        for _ in range(200):
            if self.loop.turn(0.05) == 0 and (self.ready or self.over):
                break

    @property
    def ready(self) -> bool:
        return all(side.is_ready for side in self.sides)

    @property
    def over(self) -> bool:
        return all(side.ending is not None for side in self.sides)

    @property
    def endings(self) -> tuple[Ending, Ending]:
        client, server = (side.ending for side in self.sides)
        assert client is not None
        assert server is not None
        return client, server

    def close(self) -> None:
        for tunnel in self.tunnels:
            tunnel.close(Ending("the test is over"))
        self.loop.shutdown()


Meet = Callable[..., Meeting]


@pytest.fixture
def meet(kind: type[Session]) -> Iterator[Meet]:
    meetings: list[Meeting] = []

    def make(*args: object, **kwargs: object) -> Meeting:
        meetings.append(Meeting(*args, **kwargs))  # type: ignore[arg-type]
        return meetings[-1]

    yield make
    for meeting in meetings:
        meeting.close()


def test_peers_of_one_mesh_meet(meet: Meet, mesh: MeshPki) -> None:
    meeting = meet(
        Context(mesh.leaf(CLIENT), server=False), Context(mesh.leaf(WEB), server=True), (expect(WEB), expect(CLIENT))
    )
    assert meeting.ready


class Eager(Side):
    """Opens a stream as soon as it may."""

    def __init__(self) -> None:
        super().__init__()
        self.application: socket.socket | None = None

    def secured(self, tunnel: Tunnel) -> None:
        self.application, _, _ = open_stream(tunnel)


class Counting(socket.socket):
    """How often it was written to."""

    flights = 0

    def send(self, data: Any, flags: int = 0) -> int:
        self.flights += 1
        return super().send(data, flags)


def test_a_request_goes_in_one_flight_with_the_end_of_the_handshake(
    kind: type[Session], loop: Loop, mesh: MeshPki
) -> None:
    near, far = socket_pair()
    counted = Counting(fileno=near.detach())
    client, server = Eager(), Side()
    tunnels = []
    for sock, identity, owner in ((far, WEB, server), (counted, CLIENT, client)):
        is_client = owner is client
        session = Context(mesh.leaf(identity), server=not is_client).session(loop.scratch, accept)
        tunnels.append(Tunnel(loop, sock, session, owner, Settings(), client=is_client))
    while not server.requests:
        loop.turn(0.05)
    assert counted.flights == 2, "ClientHello, and everything else"
    assert not client.is_ready
    for tunnel in tunnels:
        tunnel.close(Ending("the test is over"))
    assert client.application is not None
    for app in (client.application, *server.applications):
        app.close()


def refused(meeting: Meeting) -> None:
    """Nothing of HTTP/2 reached an owner, and the failure is named as one of TLS."""
    assert not any(side.is_ready or side.requests for side in meeting.sides)
    assert not any(tunnel.settled for tunnel in meeting.tunnels)
    assert {ending.flag for ending in meeting.endings} <= {"TLS_FAILURE", "CONNECT"}


def test_a_server_of_another_ca_is_refused(meet: Meet, mesh: MeshPki) -> None:
    meeting = meet(Context(mesh.leaf(CLIENT), server=False), Context(MeshPki().leaf(WEB), server=True))
    refused(meeting)
    client, server = meeting.endings
    assert "certificate of the peer is not valid" in client.error
    assert "alert" in server.error


def test_a_client_of_another_ca_is_refused(meet: Meet, mesh: MeshPki) -> None:
    other = MeshPki()

    class Client:
        """Trusts the server's CA, is not trusted by it."""

        chain_pem, key_pem, roots_pem = other.leaf(CLIENT).chain_pem, b"", mesh.roots_pem

    leaf = other.leaf(CLIENT)
    Client.chain_pem, Client.key_pem = leaf.chain_pem, leaf.key_pem
    meeting = meet(Context(Client(), server=False), Context(mesh.leaf(WEB), server=True))
    refused(meeting)
    client, server = meeting.endings
    assert "certificate of the peer is not valid" in server.error
    assert "alert" in client.error


@pytest.mark.parametrize("who", ["client", "server"])
def test_an_expired_certificate_is_refused(meet: Meet, mesh: MeshPki, who: str) -> None:
    client = mesh.expired(CLIENT) if who == "client" else mesh.leaf(CLIENT)
    server = mesh.expired(WEB) if who == "server" else mesh.leaf(WEB)
    meeting = meet(Context(client, server=False), Context(server, server=True))
    refused(meeting)
    judge, judged = meeting.endings if who == "server" else reversed(meeting.endings)
    assert "has expired" in judge.error
    assert "expired" in judged.error


@pytest.mark.parametrize("who", ["client", "server"])
def test_a_wrong_identity_is_refused_inside_the_handshake(meet: Meet, mesh: MeshPki, who: str) -> None:
    client = mesh.leaf(STRANGER if who == "client" else CLIENT)
    server = mesh.leaf(STRANGER if who == "server" else WEB)
    meeting = meet(Context(client, server=False), Context(server, server=True), (expect(WEB), expect(CLIENT)))
    refused(meeting)
    judge, judged = meeting.endings if who == "server" else reversed(meeting.endings)
    assert judge.error == f"the peer is {STRANGER}"
    assert judge.flag == "TLS_FAILURE"
    assert "alert" in judged.error


def test_a_certificate_without_names_is_refused(meet: Meet, mesh: MeshPki) -> None:
    meeting = meet(
        Context(mesh.odd([]), server=False), Context(mesh.leaf(WEB), server=True), (expect(WEB), expect(CLIENT))
    )
    refused(meeting)
    assert "nobody" in meeting.endings[1].error


# ---- a client that is not ours ----


def client_context(mesh: MeshPki, *, alpn: list[bytes] | None, certificate: bool = True) -> SSL.Context:
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    if certificate:
        leaf = mesh.leaf(CLIENT)
        certificates = tls.x509.load_pem_x509_certificates(leaf.chain_pem)
        context.use_certificate(certificates[0])
        context.use_privatekey(tls.load_pem_private_key(leaf.key_pem, None))  # type: ignore[arg-type]
    if alpn is not None:
        context.set_alpn_protos(alpn)
    return context


class Foreigner:
    """A plain pyOpenSSL client in front of a server tunnel."""

    def __init__(self, mesh: MeshPki, context: SSL.Context) -> None:
        self.loop = Loop()
        self.side = Side()
        inner, self.sock = socket.socketpair()
        inner.setblocking(False)
        self.sock.setblocking(False)
        session = Context(mesh.leaf(WEB), server=True).session(self.loop.scratch, accept)
        self.tunnel = Tunnel(self.loop, inner, session, self.side, Settings(), client=False)
        self.tls = SSL.Connection(context, None)
        self.tls.set_connect_state()
        self.error = ""

    def talk(self) -> None:
        """Exchange what both have to say."""
        for _ in range(10):
            try:
                self.tls.do_handshake()
                self.tls.recv(1 << 16)
            except SSL.WantReadError:
                pass
            except SSL.Error as error:
                self.error = self.error or str(error)
            with contextlib.suppress(SSL.WantReadError, OSError):
                self.sock.send(self.tls.bio_read(1 << 16))
            self.loop.turn(0)
            try:
                data = self.sock.recv(1 << 16)
            except OSError:
                continue
            if data:
                self.tls.bio_write(data)

    def close(self) -> None:
        self.tunnel.close(Ending("the test is over"))
        self.loop.shutdown()
        self.sock.close()


@pytest.fixture
def foreigner(kind: type[Session], mesh: MeshPki) -> Iterator[Callable[[SSL.Context], Foreigner]]:
    made: list[Foreigner] = []

    def make(context: SSL.Context) -> Foreigner:
        made.append(Foreigner(mesh, context))
        made[-1].talk()
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize("alpn", [[b"h2"], None, [b"http/1.1", b"h2"]], ids=["h2", "none", "h2-among-others"])
def test_h2_or_no_protocol_is_accepted(
    foreigner: Callable[[SSL.Context], Foreigner], mesh: MeshPki, alpn: list[bytes] | None
) -> None:
    client = foreigner(client_context(mesh, alpn=alpn))
    assert client.error == ""
    assert client.tunnel.session.established
    assert client.tls.get_alpn_proto_negotiated() == (b"h2" if alpn else b"")


def test_a_client_that_offers_only_http1_is_refused(
    foreigner: Callable[[SSL.Context], Foreigner], mesh: MeshPki
) -> None:
    client = foreigner(client_context(mesh, alpn=[b"http/1.1"]))
    assert client.side.ending is not None
    assert client.side.ending == Ending("the client offers no h2", "TLS_FAILURE")
    assert "no application protocol" in client.error


def test_a_client_without_a_certificate_is_refused(
    foreigner: Callable[[SSL.Context], Foreigner], mesh: MeshPki
) -> None:
    client = foreigner(client_context(mesh, alpn=[b"h2"], certificate=False))
    assert client.side.ending is not None
    assert "did not return a certificate" in client.side.ending.error
    assert "certificate required" in client.error


def test_a_client_of_tls_1_2_is_refused(foreigner: Callable[[SSL.Context], Foreigner], mesh: MeshPki) -> None:
    context = client_context(mesh, alpn=[b"h2"])
    context.set_max_proto_version(SSL.TLS1_2_VERSION)
    client = foreigner(context)
    assert client.side.ending is not None
    assert "unsupported protocol" in client.side.ending.error
    assert "protocol version" in client.error


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\n\r\n", bytes(range(256)) * 4, b"\x16\x03\x01\x40\x01" + bytes(600)]
)
def test_what_is_no_tls_is_refused(kind: type[Session], mesh: MeshPki, garbage: bytes) -> None:
    client = Foreigner(mesh, client_context(mesh, alpn=[b"h2"]))
    client.sock.send(garbage)
    client.loop.turn(0)
    client.loop.turn(0)
    assert client.side.ending is not None
    assert client.side.ending.error.startswith("TLS failed")
    assert client.side.ending.flag == "TLS_FAILURE"
    client.close()


def test_the_group_without_post_quantum_is_accepted(
    foreigner: Callable[[SSL.Context], Foreigner], mesh: MeshPki
) -> None:
    context = client_context(mesh, alpn=[b"h2"])
    assert tls._lib.SSL_CTX_set1_curves_list(context._context, b"X25519") == 1
    client = foreigner(context)
    assert client.tunnel.session.facts["group"].upper() == "X25519"


def test_what_waits_to_be_sent_is_not_trimmed(wire: Wire, mesh: MeshPki) -> None:
    """The last flight of a handshake leaves with the first request, and may still be there when the peer is ready."""
    wire = Wire(Context(mesh.leaf(CLIENT), server=False), Context(mesh.leaf(WEB), server=True))
    wire.give(1, wire.sealed(0, wire.client.start()))
    wire.give(0, wire.sealed(1, wire.server.take_output()))
    assert wire.client.established
    assert not wire.server.established
    wire.client.trim()
    wire.give(1, wire.sealed(0, wire.client.take_output()))
    assert wire.server.established


def test_a_session_that_was_trimmed_after_a_burst_goes_on(wire: Wire) -> None:
    wire.shake_hands()
    for round_ in range(3):
        burst = bytes([round_]) * 500_000
        records = wire.seal(0, burst)
        got = b"".join(wire.give(1, records[at : at + 100_000]) for at in range(0, len(records), 100_000))
        assert got == burst
        wire.give(0, wire.seal(1, b"answer"))
        wire.client.trim()
        wire.server.trim()
        assert wire.give(1, wire.seal(0, b"small")) == b"small"
        assert wire.give(0, wire.seal(1, b"small too")) == b"small too"
    assert wire.client.close_notify() > 0
