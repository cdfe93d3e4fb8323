"""A CA as the four PEM files of Istio's `cacerts`: checked when read, rendered when made.

Works on bytes by file name; where the files live is ca_directory's business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from ztunnel.control.identity.ca import CA_LIFETIME, CaKey, LocalCa, mint_root
from ztunnel.control.identity.certificate import (
    describe_key,
    is_ca,
    is_issuer,
    load_certificates,
    public_der,
    rfc3339,
    to_pem,
)
from ztunnel.core.errors import ConfigError

CA_CERT = "ca-cert.pem"
CA_KEY = "ca-key.pem"
ROOT_CERT = "root-cert.pem"
CERT_CHAIN = "cert-chain.pem"
FILES = (ROOT_CERT, CERT_CHAIN, CA_KEY, CA_CERT)
"""In the order in which they are put in place: who sees the last one sees all."""
SECRET_FILES = (CA_KEY,)

MIN_RSA_BITS = 2048
CURVES = ("secp256r1", "secp384r1", "secp521r1")


def render_new(*, name: str, now: float, lifetime: float = CA_LIFETIME) -> dict[str, bytes]:
    """The files of a new self-signed CA."""
    certificate, key = mint_root(name, now=now, lifetime=lifetime)
    pem = to_pem([certificate])
    return {
        ROOT_CERT: pem,
        CERT_CHAIN: pem,
        CA_KEY: key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        CA_CERT: pem,
    }


def parse_ca(files: Mapping[str, bytes], *, where: str, now: float) -> LocalCa:
    """The CA that the files hold; `cert-chain.pem` may be absent. `where` names the directory in messages.

    Raises ConfigError with every problem found: missing, broken, expired, or not belonging together.
    """
    reader = _Reader(files)
    certificates = reader.certificates(CA_CERT)
    key = reader.key()
    roots = reader.certificates(ROOT_CERT)
    pool = reader.certificates(CERT_CHAIN) if files.get(CERT_CHAIN, b"").strip() else []
    if not reader.problems and key is not None:
        certificate = certificates[0]
        reader.problems += _unfit(certificate, key, now)
        path = _path_to_root(certificate, pool, roots)
        if path is None:
            reader.problems.append(
                f"{CA_CERT} ({certificate.subject.rfc4514_string()}, issued by "
                f"{certificate.issuer.rfc4514_string()}) does not lead to a root in {ROOT_CERT} "
                f"through {CERT_CHAIN}"
            )
        elif not reader.problems:
            return LocalCa(certificate, key, intermediates=path, roots=roots)
    raise ConfigError(
        f"the CA in {where} cannot be used: {'; '.join(reader.problems)}",
        problems=tuple(reader.problems),
        hint=f"see `ztunnel ca inspect {where}`; correct the files, or let `ztunnel ca init` fill an empty directory",
    )


class _Reader:
    """Reads the files and collects what is wrong with them."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = files
        self.problems: list[str] = []

    def certificates(self, name: str) -> list[x509.Certificate]:
        if name not in self._files:
            self.problems.append(f"{name} is missing")
            return []
        try:
            return load_certificates(self._files[name])
        except ValueError:
            self.problems.append(f"{name} holds no readable PEM certificate")
            return []

    def key(self) -> CaKey | None:
        if CA_KEY not in self._files:
            self.problems.append(f"{CA_KEY} is missing")
            return None
        try:
            key = load_pem_private_key(self._files[CA_KEY], password=None)
        except TypeError:
            self.problems.append(f"{CA_KEY} is encrypted; store it without a password")
            return None
        except (ValueError, UnsupportedAlgorithm):
            self.problems.append(f"{CA_KEY} holds no readable PEM private key")
            return None
        if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= MIN_RSA_BITS:
            return key
        if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in CURVES:
            return key
        self.problems.append(
            f"{CA_KEY} is {describe_key(key)}; it must be RSA with {MIN_RSA_BITS} bits or EC {' or '.join(CURVES)}"
        )
        return None


def _unfit(certificate: x509.Certificate, key: CaKey, now: float) -> list[str]:
    """Why this certificate cannot sign with this key now; empty when it can."""
    problems = []
    if public_der(certificate.public_key()) != public_der(key.public_key()):
        problems.append(f"{CA_KEY} is not the key of {CA_CERT}")
    if not is_ca(certificate):
        problems.append(f"{CA_CERT} is no CA certificate (basicConstraints CA:TRUE and keyCertSign are needed)")
    if certificate.not_valid_after_utc.timestamp() <= now:
        problems.append(f"{CA_CERT} ended at {rfc3339(certificate.not_valid_after_utc.timestamp())}")
    if certificate.not_valid_before_utc.timestamp() > now:
        problems.append(f"{CA_CERT} begins only at {rfc3339(certificate.not_valid_before_utc.timestamp())}")
    return problems


def _path_to_root(
    certificate: x509.Certificate, pool: Sequence[x509.Certificate], roots: Sequence[x509.Certificate]
) -> list[x509.Certificate] | None:
    """What a peer needs beside the leaf to reach a root: `certificate` first, the root left out; None without a way."""
    path: list[x509.Certificate] = []
    current = certificate
    while current not in roots:
        path.append(current)
        if any(is_issuer(root, current) for root in roots):
            break
        above = [other for other in pool if other not in path and is_issuer(other, current)]
        if not above:
            return None
        current = above[0]
    return path
