"""TLS for tunnels: OpenSSL over memory BIOs, between the loop's scratch buffers.

Owns everything that touches OpenSSL. Knows SPIFFE identities only as "the URI names of a leaf" and a function that
accepts or refuses them inside the handshake, so that a peer with the wrong identity gets an alert and no byte of
HTTP is ever exchanged with it.

Theory of operation. pyOpenSSL gives what Python's ssl cannot: TLS 1.3 suites, groups, keys that live only in
memory, a verify callback. Its read and write allocate per call, though, so the hot path calls the binding beneath
(`SSL_read`, `SSL_write`, `BIO_*` on the very same objects) with pointers into the scratch buffers: 256 KB and more
per call, no allocation. Received ciphertext is shown to OpenSSL as a read-only BIO over the receive buffer, which
saves a copy; OpenSSL always drains it and keeps a partial record itself. The binding is not a stable interface,
so `FAST` is true only for the pyOpenSSL and cryptography generations it was tested with; any other takes
`PortableSession`, which uses the public interface alone. Both pass the same tests.

Numbers: suites AES-128-GCM first (5-10 % less CPU than AES-256 on the bulk path, and what Envoy and ztunnel choose
between each other), groups X25519MLKEM768 then X25519 (Istio's default order).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import cryptography
import OpenSSL
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL, _util

from ztunnel.core.errors import IdentityUnavailable, TlsError
from ztunnel.worker.engine.scratch import Scratch

CIPHERSUITES = b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384"
GROUPS = b"X25519MLKEM768:X25519"
ALPN = b"h2"

_RECORD = 16 * 1024
"""Most plaintext of one TLS record (RFC 8446 section 5.1)."""

_lib: Any = _util.lib
_ffi: Any = _util.ffi

_NEEDED = (
    "BIO_new",
    "BIO_s_mem",
    "BIO_new_mem_buf",
    "BIO_read",
    "BIO_set_mem_eof_return",
    "SSL_get_error",
    "SSL_read",
    "SSL_set_bio",
    "SSL_write",
)


def binding_is_known() -> bool:
    """Whether the hot path's direct calls were tested with the installed generations."""
    generations = (OpenSSL.__version__.split(".")[0], cryptography.__version__.split(".")[0])
    return generations == ("26", "50") and all(hasattr(_lib, name) for name in _NEEDED)


FAST = binding_is_known()

Verify = Callable[[tuple[str, ...]], str | None]
"""Takes the URI names of the peer's leaf; answers None to accept, or why not."""


class Identity(Protocol):
    """The PEM texts of a certificate; `link.messages.CertificateIssued` is one."""

    @property
    def chain_pem(self) -> bytes: ...
    @property
    def key_pem(self) -> bytes: ...
    @property
    def roots_pem(self) -> bytes: ...


def uri_names(certificate: x509.Certificate) -> tuple[str, ...]:
    """The URI subject alternative names of a certificate."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return ()
    return tuple(names.get_values_for_type(x509.UniformResourceIdentifier))


def _verify(connection: SSL.Connection, certificate: Any, _errno: int, depth: int, chain_ok: int) -> bool:
    """OpenSSL's verdict on the chain, then ours on the leaf; the reason is left for the session to report."""
    check: _Check = connection.get_app_data()
    if not chain_ok:
        check.refusal = f"certificate of the peer is not valid: {_verify_error(_errno)}"
        return False
    if depth:
        return True
    check.names = uri_names(certificate.to_cryptography())
    check.refusal = check.verify(check.names)
    return check.refusal is None


def _verify_error(code: int) -> str:
    text = _lib.X509_verify_cert_error_string(code)
    return str(_ffi.string(text).decode())


class _Check:
    """What a handshake must verify and what it found."""

    __slots__ = ("names", "refusal", "verify")

    def __init__(self, verify: Verify) -> None:
        self.verify = verify
        self.names: tuple[str, ...] = ()
        self.refusal: str | None = None


class Context:
    """Credentials for one identity in one role; made once per certificate and shared by its handshakes."""

    def __init__(self, identity: Identity, *, server: bool) -> None:
        self.server = server
        context = SSL.Context(SSL.TLS_SERVER_METHOD if server else SSL.TLS_CLIENT_METHOD)
        context.set_min_proto_version(SSL.TLS1_3_VERSION)
        context.set_tls13_ciphersuites(CIPHERSUITES)
        if _lib.SSL_CTX_set1_curves_list(context._context, GROUPS) != 1:
            _lib.ERR_clear_error()
            _lib.SSL_CTX_set1_curves_list(context._context, b"X25519")
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_options(SSL.OP_NO_TICKET | SSL.OP_CIPHER_SERVER_PREFERENCE)
        context.set_mode(_lib.SSL_MODE_RELEASE_BUFFERS)
        # pyOpenSSL writes one record per call by default; a batch of many is what makes bulk fast.
        context.clear_mode(_lib.SSL_MODE_ENABLE_PARTIAL_WRITE)
        try:
            chain = x509.load_pem_x509_certificates(identity.chain_pem)
            self.names = uri_names(chain[0])
            """Our own; reading them also loads the parser, which costs a first handshake 10 ms otherwise."""
            context.use_certificate(chain[0])
            for intermediate in chain[1:]:
                context.add_extra_chain_cert(intermediate)
            context.use_privatekey(load_pem_private_key(identity.key_pem, None))  # type: ignore[arg-type]
            context.check_privatekey()
            store = context.get_cert_store()
            assert store is not None
            for root in x509.load_pem_x509_certificates(identity.roots_pem):
                store.add_cert(OpenSSL.crypto.X509.from_cryptography(root))
        except (ValueError, SSL.Error) as error:
            raise IdentityUnavailable(f"the issued certificate cannot be used: {error}") from error
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, _verify)
        if server:
            context.set_alpn_select_callback(_select_alpn)
        else:
            context.set_alpn_protos([ALPN])
        self._context = context

    def session(self, scratch: Scratch, verify: Verify) -> Session:
        """A new session that verifies the peer's names with `verify`."""
        connection = SSL.Connection(self._context, None)
        connection.set_app_data(_Check(verify))
        if self.server:
            connection.set_accept_state()
        else:
            connection.set_connect_state()
        return FastSession(connection, scratch) if FAST else PortableSession(connection, scratch)


def _select_alpn(_connection: SSL.Connection, offered: Sequence[bytes]) -> Any:
    """h2 or nothing: a client that offers only other protocols is refused with an alert."""
    if ALPN in offered:
        return ALPN
    raise TlsError("the client offers no h2")


class Session(ABC):
    """One TLS connection between scratch buffers; the subclass says how records are read and written."""

    __slots__ = ("_check", "_connection", "_scratch", "closed", "established")

    def __init__(self, connection: SSL.Connection, scratch: Scratch) -> None:
        self._connection = connection
        self._scratch = scratch
        self._check: _Check = connection.get_app_data()
        self.established = False
        self.closed = False
        """The peer sent close_notify."""

    @property
    def peer_names(self) -> tuple[str, ...]:
        """URI names of the peer's leaf, as verified in the handshake."""
        return self._check.names

    @property
    def facts(self) -> dict[str, str]:
        """Version, suite and group in force, for people."""
        connection = self._connection
        return {
            "version": connection.get_protocol_version_name(),
            "cipher": connection.get_cipher_name() or "",
            "group": connection.get_group_name() or "",
        }

    def start(self) -> int:
        """Begin the handshake (client). The number of bytes now in `scratch.sealed`."""
        self._handshake()
        return self._drain_output()

    def shake_hands(self, size: int) -> int:
        """Take `scratch.cipher[:size]` for the handshake; what came behind it goes to `scratch.plain`: returns its end.

        `take_output` then holds what the peer must get, an alert too when this raises TlsError.
        """
        self._feed(size)
        return self.read(0, 0) if self._handshake() else 0

    @abstractmethod
    def read(self, size: int, start: int) -> int:
        """Take `scratch.cipher[:size]`; decrypted bytes go to `scratch.plain` from `start`. Returns their end.

        Raises TlsError when a record fails; `take_output` may then hold an alert for the peer.
        """

    def take_output(self) -> int:
        """Move handshake messages and alerts to `scratch.sealed`; their size."""
        return self._drain_output()

    @abstractmethod
    def seal(self, size: int) -> int:
        """Encrypt `scratch.clear[:size]` into `scratch.sealed`; the size there. Raises TlsError."""

    @abstractmethod
    def trim(self) -> None:
        """Give back what the handshake or a burst made OpenSSL's buffers grow to; for a session that is quiet now."""

    def close_notify(self) -> int:
        """Say goodbye; the number of bytes now in `scratch.sealed`."""
        if not self.established:
            return self._drain_output()
        try:
            self._connection.shutdown()
        except SSL.Error:
            return 0
        return self._drain_output()

    def _handshake(self) -> bool:
        try:
            self._connection.do_handshake()
        except SSL.WantReadError:
            return False
        except (SSL.Error, TlsError) as error:
            raise TlsError(self._explain(error)) from error
        if self._connection.get_alpn_proto_negotiated() not in (ALPN, b""):
            raise TlsError("the peer chose another protocol than h2")
        self.established = True
        return True

    def _explain(self, error: Exception) -> str:
        if self._check.refusal is not None:
            return self._check.refusal
        if isinstance(error, TlsError):
            return str(error)
        reasons = error.args[0] if error.args and isinstance(error.args[0], list) else []
        texts = [str(reason[2]) for reason in reasons if len(reason) > 2 and reason[2]]
        return "TLS failed: " + ("; ".join(texts) if texts else "the connection ended")

    def _feed(self, size: int) -> None:
        self._connection.bio_write(self._scratch.cipher_view[:size])

    def _drain_output(self) -> int:
        total = 0
        view = self._scratch.sealed_view
        while True:
            try:
                chunk = self._connection.bio_read(min(65536, len(view) - total))
            except SSL.WantReadError:
                return total
            view[total : total + len(chunk)] = chunk
            total += len(chunk)


class PortableSession(Session):
    """Records through pyOpenSSL's public interface."""

    __slots__ = ()

    def trim(self) -> None:
        """The public interface gives no way to."""

    def read(self, size: int, start: int) -> int:
        if size:
            self._feed(size)
        view = self._scratch.plain_view
        end = start
        try:
            while True:
                end += self._connection.recv_into(view[end : end + _RECORD])
        except SSL.WantReadError:
            return end
        except SSL.ZeroReturnError:
            self.closed = True
            return end
        except SSL.Error as error:
            raise TlsError(self._explain(error)) from error

    def seal(self, size: int) -> int:
        view = self._scratch.clear_view
        done = 0
        try:
            while done < size:
                done += self._connection.send(view[done : min(size, done + _RECORD)])
        except SSL.Error as error:
            raise TlsError(self._explain(error)) from error
        return self._drain_output()


class _Pointers:
    """C pointers to a loop's scratch buffers, made once."""

    def __init__(self, scratch: Scratch) -> None:
        self.cipher = _ffi.from_buffer("char[]", scratch.cipher)
        self.plain = _ffi.from_buffer("char[]", scratch.plain)
        self.clear = _ffi.from_buffer("char[]", scratch.clear)
        self.sealed = _ffi.from_buffer("char[]", scratch.sealed)
        self.sealed_size = len(scratch.sealed)
        self.plain_size = len(scratch.plain)


TRIM_ABOVE = 64 * 1024
"""Bytes of one seal above which the output buffer is worth trimming later; it keeps its largest size otherwise."""
_SSL_ERROR_WANT_READ = 2
_SSL_ERROR_ZERO_RETURN = 6


SMALL_READ = 2048
"""Most ciphertext that is copied into a memory BIO, which every session keeps; a view for it costs more calls."""


class FastSession(Session):
    """Records through the binding beneath pyOpenSSL's objects: few calls, and no large copy that is not needed.

    Each call of the binding gives up the interpreter's lock and takes it again, so for a small record their number is
    what it costs.
    """

    __slots__ = ("_copies", "_grown", "_in", "_out", "_p", "_ssl")

    def __init__(self, connection: SSL.Connection, scratch: Scratch) -> None:
        super().__init__(connection, scratch)
        pointers = getattr(scratch, "pointers", None)
        if pointers is None:
            pointers = scratch.pointers = _Pointers(scratch)  # type: ignore[attr-defined]
        self._p: _Pointers = pointers
        self._ssl: Any = connection._ssl
        self._in: Any = connection._into_ssl
        self._copies = True
        """`_in` is a memory BIO to copy into; otherwise it is a view of ciphertext that is used up."""
        self._out: Any = connection._from_ssl
        self._grown = True  # by the handshake

    def read(
        self,
        size: int,
        start: int,
        write_bio: Any = _lib.BIO_write,
        read: Any = _lib.SSL_read,
        left: Any = _lib.BIO_get_mem_data,
        null: Any = _ffi.NULL,
    ) -> int:
        pointers = self._p
        ssl = self._ssl
        plain = pointers.plain + start if start else pointers.plain
        if size <= SMALL_READ:
            if not self._copies:
                self._replace_input(_lib.BIO_new(_lib.BIO_s_mem()), copies=True)
            write_bio(self._in, pointers.cipher, size)
            got = read(ssl, plain, _RECORD)
            # OpenSSL takes no more than the record that it returns: an empty BIO means that this was the last one.
            if got > 0 and not left(self._in, null):
                return start + int(got)
        else:
            self._replace_input(_lib.BIO_new_mem_buf(pointers.cipher, size), copies=False)
            got = read(ssl, plain, _RECORD)
        end = start
        while got > 0:
            end += got
            got = read(ssl, pointers.plain + end, _RECORD)
        error = _lib.SSL_get_error(ssl, got)
        if error != _SSL_ERROR_WANT_READ:
            self._ended(error)
        return end

    def _replace_input(self, bio: Any, *, copies: bool) -> None:
        """OpenSSL reads from `bio` now; it frees the one before, which it has emptied."""
        _lib.BIO_set_mem_eof_return(bio, -1)
        _lib.SSL_set_bio(self._ssl, bio, self._out)
        self._in = bio
        self._copies = copies

    def _ended(self, error: int) -> None:
        if error == _SSL_ERROR_ZERO_RETURN:
            self.closed = True
            return
        try:
            SSL._raise_current_error()
        except SSL.Error as failure:
            raise TlsError(self._explain(failure)) from failure
        raise TlsError("TLS failed: the connection ended")

    def seal(self, size: int, write: Any = _lib.SSL_write, read: Any = _lib.BIO_read) -> int:
        pointers = self._p
        if write(self._ssl, pointers.clear, size) != size:
            _lib.ERR_clear_error()
            raise TlsError("TLS failed: the record layer refuses to write")
        if size > TRIM_ABOVE:
            self._grown = True
        return int(read(self._out, pointers.sealed, pointers.sealed_size))

    def trim(self) -> None:
        waits = _lib.BIO_get_mem_data
        if not self._grown or waits(self._out, _ffi.NULL) or waits(self._in, _ffi.NULL):
            return
        self._grown = False
        connection = self._connection
        self._in, self._out = _lib.BIO_new(_lib.BIO_s_mem()), _lib.BIO_new(_lib.BIO_s_mem())
        self._copies = True
        _lib.SSL_set_bio(self._ssl, self._in, self._out)  # frees those before
        connection._into_ssl, connection._from_ssl = self._in, self._out
