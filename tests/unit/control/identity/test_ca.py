from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from ztunnel.control.identity.ca import CLOCK_SKEW, LocalCa, LocalSource, MemoryCa, signing_hash
from ztunnel.control.identity.certificate import IssuedCertificate
from ztunnel.core.errors import IdentityUnavailable
from ztunnel.core.model.identity import Identity

NOW = 1_800_000_000.0
WEB = Identity("cluster.local", "default", "web")


@pytest.fixture
def ca() -> MemoryCa:
    return MemoryCa(now=NOW)


def leaf_of(issued: IssuedCertificate) -> x509.Certificate:
    return x509.load_pem_x509_certificates(issued.chain_pem)[0]


def test_a_leaf_has_an_empty_subject_and_one_critical_spiffe_uri(ca: MemoryCa) -> None:
    leaf = leaf_of(ca.issue(WEB, ttl=3600, now=NOW))
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert leaf.subject == x509.Name([])
    assert names.critical
    assert list(names.value) == [x509.UniformResourceIdentifier("spiffe://cluster.local/ns/default/sa/web")]


def test_a_leaf_may_be_server_and_client_and_sign_handshakes_only(ca: MemoryCa) -> None:
    extensions = leaf_of(ca.issue(WEB, ttl=3600, now=NOW)).extensions
    usage = extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.digital_signature
    assert not usage.key_cert_sign
    assert not usage.key_encipherment
    assert set(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == {
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    }
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_a_leaf_begins_two_minutes_ago_and_lasts_for_its_ttl(ca: MemoryCa) -> None:
    issued = ca.issue(WEB, ttl=3600, now=NOW + 0.75)
    leaf = leaf_of(issued)
    assert leaf.not_valid_before_utc.timestamp() == issued.not_before == NOW - CLOCK_SKEW
    assert leaf.not_valid_after_utc.timestamp() == issued.not_after == NOW + 3600


def test_the_key_is_p256_and_belongs_to_the_leaf(ca: MemoryCa) -> None:
    issued = ca.issue(WEB, ttl=3600, now=NOW)
    key = load_pem_private_key(issued.key_pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.curve.name == "secp256r1"
    form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    assert key.public_key().public_bytes(*form) == leaf_of(issued).public_key().public_bytes(*form)


def test_every_certificate_has_its_own_key_and_serial(ca: MemoryCa) -> None:
    first, second = ca.issue(WEB, ttl=3600, now=NOW), ca.issue(WEB, ttl=3600, now=NOW)
    assert first.key_pem != second.key_pem
    assert leaf_of(first).serial_number != leaf_of(second).serial_number


def test_the_trust_domain_is_that_of_the_identity(ca: MemoryCa) -> None:
    issued = ca.issue(Identity("other.example", "a", "b"), ttl=3600, now=NOW)
    names = leaf_of(issued).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://other.example/ns/a/sa/b"]


def test_no_leaf_outlives_its_ca() -> None:
    ca = MemoryCa(now=NOW, lifetime=1000)
    assert ca.issue(WEB, ttl=3600, now=NOW).not_after == NOW + 1000


def test_an_expired_ca_signs_nothing_and_says_when_it_ended() -> None:
    ca = MemoryCa(now=NOW, lifetime=1000)
    with pytest.raises(IdentityUnavailable, match="ended at 2027-01-15T08:16:40Z") as caught:
        ca.issue(WEB, ttl=3600, now=NOW + 1000)
    assert "ca inspect" in caught.value.hint


@pytest.mark.parametrize(
    "identity",
    [
        Identity("", "default", "web"),
        Identity("cluster.local", "", "web"),
        Identity("cluster.local", "default", "a/../b"),
        Identity("cluster.local", "default", "wéb"),
        Identity("cluster.local", "default", "web\n"),
    ],
)
def test_an_identity_that_is_no_spiffe_id_gets_no_certificate(ca: MemoryCa, identity: Identity) -> None:
    with pytest.raises(IdentityUnavailable, match="no SPIFFE identity"):
        ca.issue(identity, ttl=3600, now=NOW)


def test_no_key_shows_in_a_repr(ca: MemoryCa) -> None:
    issued = ca.issue(WEB, ttl=3600, now=NOW)
    for shown in (repr(issued), str(issued), repr(issued.message(WEB)), repr(ca), f"{issued!r:>5}"):
        assert "PRIVATE" not in shown
        assert issued.key_pem.splitlines()[1].decode() not in shown


@pytest.mark.parametrize(
    ("key", "digest"),
    [
        (ec.generate_private_key(ec.SECP256R1()), "sha256"),
        (ec.generate_private_key(ec.SECP384R1()), "sha384"),
        (ec.generate_private_key(ec.SECP521R1()), "sha512"),
        (rsa.generate_private_key(65537, 2048), "sha256"),
    ],
)
def test_ca_keys_of_every_allowed_kind_sign_with_the_hash_tls_pairs_with_them(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, digest: str
) -> None:
    own = MemoryCa(now=NOW).certificate
    builder = (
        x509.CertificateBuilder(
            subject_name=own.subject,
            issuer_name=own.subject,
            public_key=key.public_key(),
            serial_number=5,
            not_valid_before=own.not_valid_before_utc,
            not_valid_after=own.not_valid_after_utc,
        )
    ).add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    root = builder.sign(key, hashes.SHA256())
    leaf = leaf_of(LocalCa(root, key, roots=[root]).issue(WEB, ttl=3600, now=NOW))
    leaf.verify_directly_issued_by(root)
    assert leaf.signature_hash_algorithm is not None
    assert leaf.signature_hash_algorithm.name == signing_hash(key).name == digest


def test_openssl_accepts_the_chain_for_servers_and_clients(ca: MemoryCa, tmp_path: Path) -> None:
    issued = ca.issue(WEB, ttl=3600, now=NOW)
    (tmp_path / "leaf.pem").write_bytes(issued.chain_pem)
    (tmp_path / "root.pem").write_bytes(issued.roots_pem)
    for purpose in ("sslserver", "sslclient"):
        command = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-attime", str(int(NOW))]
        checked = subprocess.run(
            [*command, "-CAfile", str(tmp_path / "root.pem"), str(tmp_path / "leaf.pem")],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        assert checked.returncode == 0, checked.stdout + checked.stderr


async def test_a_local_source_signs_with_the_ca_of_the_moment(ca: MemoryCa) -> None:
    asked = []

    def open_ca(now: float) -> LocalCa:
        asked.append(now)
        return ca

    issued = await LocalSource(open_ca, ttl=600, clock=lambda: NOW).fetch(WEB)
    assert issued.not_after == NOW + 600
    assert asked == [NOW]
