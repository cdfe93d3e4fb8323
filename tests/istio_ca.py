"""Istio's certificate service, for a ztunnel that is not ours: gRPC over TLS on loopback of a namespace.

    with IstioCa(pod, pki, directory) as ca:
        environ = ca.environ            what a ztunnel there needs to find it

It signs every request as the workload that it says to be. Reference: istio/api security/v1alpha1/ca.proto; gRPC over
HTTP/2 as in grpc/doc/PROTOCOL-HTTP2.md.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import h2.config
import h2.connection
import h2.events
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from mesh_pki import MeshPki
from netns_builder import Namespace

from ztunnel.linux.sockets import listen_tcp

LOOPBACK, PORT = "127.0.0.1", 15012
CSR_FIELD, CHAIN_FIELD = 1, 1
"""IstioCertificateRequest.csr and IstioCertificateResponse.cert_chain."""
LENGTH_DELIMITED = 2
"""Wire type of strings in protobuf."""


class IstioCa:
    def __init__(self, namespace: Namespace, pki: MeshPki, directory: Path) -> None:
        self._pki = pki
        self._root = directory / "istio-ca-root.pem"
        self._root.write_bytes(pki.roots_pem)
        self._tls = _server_context(pki, directory)
        self._listener = listen_tcp(ip=LOOPBACK, port=PORT, netns=namespace.fd)
        self._listener.setblocking(True)
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    @property
    def environ(self) -> Mapping[str, str]:
        return {"CA_ADDRESS": f"https://{LOOPBACK}:{PORT}", "CA_ROOT_CA": str(self._root)}

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(5)
        for sock in self._open:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads[1:]:
            thread.join(5)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self._open.append(sock)
                thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError), sock, self._tls.wrap_socket(sock, server_side=True) as tls:
            http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
            http.initiate_connection()
            requests: dict[int, bytearray] = {}
            tls.sendall(http.data_to_send())
            while data := tls.recv(1 << 16):
                for event in http.receive_data(data):
                    if isinstance(event, h2.events.DataReceived):
                        requests.setdefault(event.stream_id, bytearray()).extend(event.data)
                    elif isinstance(event, h2.events.StreamEnded):
                        self._answer(http, event.stream_id, bytes(requests.pop(event.stream_id)))
                tls.sendall(http.data_to_send())

    def _answer(self, http: h2.connection.H2Connection, stream: int, request: bytes) -> None:
        request_pem = _field(request[5:], CSR_FIELD)  # after gRPC's compression flag and length
        chain = (self._sign(request_pem), self._pki.roots_pem)
        message = b"".join(_encode(CHAIN_FIELD, certificate) for certificate in chain)
        http.send_headers(stream, [(":status", "200"), ("content-type", "application/grpc")])
        http.send_data(stream, b"\0" + len(message).to_bytes(4) + message)
        http.send_headers(stream, [("grpc-status", "0")], end_stream=True)

    def _sign(self, request_pem: bytes) -> bytes:
        request = x509.load_pem_x509_csr(request_pem)
        names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return self._pki.sign(request.public_key(), list(names)).public_bytes(Encoding.PEM)


def _server_context(pki: MeshPki, directory: Path) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = pki.sign(key.public_key(), [x509.IPAddress(ipaddress.ip_address(LOOPBACK))])
    path = directory / "istio-ca.pem"
    path.touch(mode=0o600)
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(certificate.public_bytes(Encoding.PEM) + secret)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    context.set_alpn_protocols(["h2"])
    return context


def _field(message: bytes, number: int) -> bytes:
    """The first string of this number; of other fields those that a request has are stepped over."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        value, at = _varint(message, at)  # a number, or the length of what follows
        if tag & 7 == LENGTH_DELIMITED:
            if tag >> 3 == number:
                return message[at : at + value]
            at += value
    raise ValueError(f"no field {number} in {message!r}")


def _encode(number: int, value: bytes) -> bytes:
    size, length = bytearray(), len(value)
    while length > 127:
        size.append(length & 127 | 128)
        length >>= 7
    return bytes([number << 3 | LENGTH_DELIMITED, *size, length]) + value


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
