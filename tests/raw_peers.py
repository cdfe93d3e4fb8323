"""Peers of a tunnel that are not a worker, to say what a worker never would.

`HboneServer` stands where a server's worker would (its 15008) and can be silent at every stage, allow few streams,
refuse, drain or die. `HboneClient` is a client made of OpenSSL and the h2 library; it blocks.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import h2.config
import h2.connection
import h2.events
import OpenSSL
import trio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from netns_builder import Namespace, Pod
from OpenSSL import SSL

from ztunnel.core.wire import frames
from ztunnel.link.messages import CertificateIssued
from ztunnel.linux.sockets import listen_tcp
from ztunnel.worker.engine.driver import drive
from ztunnel.worker.engine.ending import Ending
from ztunnel.worker.engine.h2 import Settings, Tunnel
from ztunnel.worker.engine.loop import Loop
from ztunnel.worker.engine.stream import Stream
from ztunnel.worker.engine.tcp import Listener, abort_on_close
from ztunnel.worker.engine.tls import Context

MARK = 0x539
Headers = list[tuple[bytes, bytes]]


class _SilentTunnel(Tunnel):
    """Completes TLS and then says nothing."""

    def _on_secured(self) -> None:
        self.owner.secured(self)


class HboneServer:
    """Answers each CONNECT with `answer` ("" for none) and leaves the other end of the stream in `applications`.

    `silent_after` "tcp" or "tls" stops there. `leaf` may be exchanged at any time; new connections use it.
    """

    def __init__(
        self,
        pod: Pod,
        leaf: CertificateIssued,
        *,
        settings: Settings | None = None,
        answer: str = "200",
        silent: str = "",
    ) -> None:
        self.loop = Loop()
        self.leaf = leaf
        self.settings = settings or Settings()
        self.answer = answer
        self.silent_after = silent
        self.accepted: list[socket.socket] = []
        self.tunnels: list[Tunnel] = []
        self.ready_tunnels: list[Tunnel] = []
        self.requests: list[Headers] = []
        self.streams: list[Stream] = []
        self.applications: list[socket.socket] = []
        self.endings: list[Ending] = []
        sock = listen_tcp(ip=pod.ip4, port=15008, netns=pod.fd, mark=MARK)
        self._listener = Listener(self.loop, sock, self._take)

    def _take(self, sock: socket.socket, _peer: Any) -> None:
        self.accepted.append(sock)
        if self.silent_after == "tcp":
            return
        session = Context(self.leaf, server=True).session(self.loop.scratch, lambda names: None)
        kind = _SilentTunnel if self.silent_after == "tls" else Tunnel
        self.tunnels.append(kind(self.loop, sock, session, self, self.settings, client=False))

    def secured(self, tunnel: Tunnel) -> None: ...

    def ready(self, tunnel: Tunnel) -> None:
        self.ready_tunnels.append(tunnel)

    def changed(self, tunnel: Tunnel) -> None: ...

    def closed(self, tunnel: Tunnel, ending: Ending) -> None:
        self.endings.append(ending)

    def requested(self, stream: Stream, headers: Headers) -> None:
        self.requests.append(headers)
        self.streams.append(stream)
        if self.silent_after:
            return
        if self.answer == "200":
            self.accept(stream)
        elif self.answer:
            stream.tunnel.refuse(stream, frames.encode_header(":status", self.answer))

    def accept(self, stream: Stream) -> None:
        near, far = socket.socketpair()
        near.setblocking(False)
        far.settimeout(10)
        self.applications.append(far)
        stream.attach(near)
        stream.tunnel.accept(stream, frames.RESPONSE_200, _Nobody())

    def die(self, *, with_reset: bool) -> None:
        """The process is gone: its sockets close, nothing more is said."""
        for sock in self.accepted:
            self.loop.remove(sock.fileno())
            if with_reset:
                abort_on_close(sock)
            sock.close()

    def close(self) -> None:
        self._listener.close()
        for tunnel in self.tunnels:
            tunnel.close(Ending("the test is over"))
        self.loop.shutdown()
        for sock in (*self.accepted, *self.applications):
            sock.close()


class _Nobody:
    def opened(self, headers: Headers) -> None: ...

    def refused(self, status: int) -> None: ...

    def ended(self, ending: Ending) -> None: ...

    def returned(self, sock: socket.socket, ending: Ending) -> None: ...


@asynccontextmanager
async def hbone_server(pod: Pod, leaf: CertificateIssued, **options: Any) -> AsyncIterator[HboneServer]:
    server = HboneServer(pod, leaf, **options)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drive, server.loop)
            yield server
            nursery.cancel_scope.cancel()
    finally:
        server.close()  # not before nobody turns its loop any more


class HboneClient:
    """A tunnel to 15008. `leaf` None presents no certificate. Methods raise SSL.Error or ConnectionError at its end."""

    def __init__(
        self,
        namespace: Namespace,
        ip: str,
        leaf: CertificateIssued | None,
        *,
        roots: bytes = b"",
        alpn: Sequence[bytes] = (b"h2",),
        preface: bool = True,
    ) -> None:
        self.sock = namespace.connect(ip, 15008, mark=MARK)
        self.sock.settimeout(None)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 10, 0))
        try:
            self._tls = SSL.Connection(
                _client_context(leaf, roots or (leaf.roots_pem if leaf else b""), alpn), self.sock
            )
            self._tls.set_connect_state()
            self._tls.do_handshake()
            self._h2 = h2.connection.H2Connection(
                h2.config.H2Configuration(client_side=True, validate_outbound_headers=False, header_encoding=None)
            )
            self._raw = b""
            if preface:
                self._h2.initiate_connection()
                self.flush()
        except BaseException:
            self.sock.close()
            raise

    def __enter__(self) -> HboneClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    @property
    def group(self) -> str:
        """The key exchange that was chosen."""
        return self._tls.get_group_name() or ""

    @property
    def peer_certificate(self) -> x509.Certificate:
        certificate = self._tls.get_peer_certificate()
        assert certificate is not None
        return certificate.to_cryptography()

    # ---- bytes ----

    def send_raw(self, data: bytes) -> None:
        self._tls.sendall(data)

    def flush(self) -> None:
        data = self._h2.data_to_send()
        if data:
            self._tls.sendall(data)

    def read_raw(self) -> bytes:
        """Decrypted bytes as they come; b"" when the server has closed."""
        try:
            return bytes(self._tls.recv(1 << 16))
        except (SSL.ZeroReturnError, SSL.SysCallError):
            return b""

    def frame(self, wanted: int) -> tuple[int, bytes]:
        """Stream and body of the next frame of this kind, for conversations that h2 would not take part in."""
        while True:
            while len(self._raw) >= frames.HEADER_SIZE:
                high, low, kind, _flags, stream = frames.unpack_header(self._raw, 0)
                size = frames.HEADER_SIZE + (high << 8 | low)
                if len(self._raw) < size:
                    break
                body, self._raw = self._raw[frames.HEADER_SIZE : size], self._raw[size:]
                if kind == wanted:
                    return stream, body
            data = self.read_raw()
            if not data:
                raise ConnectionError(f"closed before a frame of kind {wanted}")
            self._raw += data

    def goaway(self) -> tuple[int, int]:
        """Last stream and code of the next GOAWAY."""
        _, body = self.frame(frames.GOAWAY)
        last, code = struct.unpack_from("!II", body)
        return last, code

    def events(self) -> list[Any]:
        """What comes next; [] when the server has closed."""
        data = self.read_raw()
        if not data:
            return []
        found = self._h2.receive_data(data)
        with contextlib.suppress(SSL.Error):
            self.flush()
        return list(found)

    def wait(self, kind: type, stream: int | None = None) -> Any:
        """The next event of this kind (of this stream); raises ConnectionError when the server closes first."""
        while found := self.events():
            for event in found:
                if isinstance(event, kind) and stream in (None, getattr(event, "stream_id", None)):
                    return event
        raise ConnectionError(f"closed before {kind.__name__}")

    # ---- requests ----

    def open(self, authority: str, *more: tuple[str, str], method: str = "CONNECT", end: bool = False) -> int:
        stream = self._h2.get_next_available_stream_id()
        headers = [(":method", method), (":authority", authority), *more]
        self._h2.send_headers(stream, headers, end_stream=end)
        self.flush()
        return int(stream)

    def request(self, authority: str, *more: tuple[str, str], method: str = "CONNECT") -> int:
        """The status that a CONNECT gets; 0 for a reset stream."""
        stream = self.open(authority, *more, method=method)
        return self.status(stream)

    def status(self, stream: int) -> int:
        while found := self.events():
            for event in found:
                if getattr(event, "stream_id", None) != stream:
                    continue
                if isinstance(event, h2.events.ResponseReceived):
                    return int(dict(event.headers)[b":status"])
                if isinstance(event, h2.events.StreamReset):
                    return 0
        raise ConnectionError("closed before an answer")

    def ping(self) -> None:
        """Until the server has answered a PING."""
        self._h2.ping(b"question")
        self.flush()
        self.wait(h2.events.PingAckReceived)

    def send(self, stream: int, data: bytes, *, end: bool = False) -> None:
        self._h2.send_data(stream, data, end_stream=end)
        self.flush()

    def echo(self, stream: int, data: bytes) -> bytes:
        """Send and read as much back."""
        self.send(stream, data)
        got = b""
        while len(got) < len(data):
            event = self.wait(h2.events.DataReceived, stream)
            got += event.data
        return got


def _client_context(leaf: CertificateIssued | None, roots: bytes, alpn: Sequence[bytes]) -> SSL.Context:
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    if leaf is not None:
        chain = x509.load_pem_x509_certificates(leaf.chain_pem)
        context.use_certificate(chain[0])
        for intermediate in chain[1:]:
            context.add_extra_chain_cert(intermediate)
        context.use_privatekey(load_pem_private_key(leaf.key_pem, None))  # type: ignore[arg-type]
    store = context.get_cert_store()
    assert store is not None
    for root in x509.load_pem_x509_certificates(roots):
        store.add_cert(OpenSSL.crypto.X509.from_cryptography(root))
    context.set_verify(SSL.VERIFY_PEER, lambda *_: True)
    if alpn:
        context.set_alpn_protos(list(alpn))
    return context
