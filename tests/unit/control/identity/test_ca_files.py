from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from ztunnel.control.identity.ca_files import parse_ca, render_new
from ztunnel.control.identity.certificate import is_issuer, load_certificates
from ztunnel.core.errors import ConfigError
from ztunnel.core.model.identity import Identity

NOW = 1_800_000_000.0
DAY = 86400.0
WEB = Identity("cluster.local", "default", "web")

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
Files = dict[str, bytes]


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def certify(
    name: str,
    key: Key,
    issuer: tuple[str, Key],
    *,
    ca: bool = True,
    begin: float = NOW - DAY,
    end: float = NOW + 30 * DAY,
) -> x509.Certificate:
    def as_name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    return (
        x509.CertificateBuilder()
        .subject_name(as_name(name))
        .issuer_name(as_name(issuer[0]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.fromtimestamp(begin, UTC))
        .not_valid_after(datetime.fromtimestamp(end, UTC))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .sign(issuer[1], hashes.SHA256())
    )


def pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def pkcs8(key: Key | ed25519.Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


ROOT_KEY, MIDDLE_KEY, CA_KEY = new_key(), new_key(), new_key()
ROOT = certify("root", ROOT_KEY, ("root", ROOT_KEY))
MIDDLE = certify("middle", MIDDLE_KEY, ("root", ROOT_KEY), end=NOW + 20 * DAY)
CA = certify("ca", CA_KEY, ("middle", MIDDLE_KEY))


def three_levels() -> Files:
    return {
        "ca-cert.pem": pem(CA),
        "ca-key.pem": pkcs8(CA_KEY),
        "root-cert.pem": pem(ROOT),
        "cert-chain.pem": pem(CA, MIDDLE, ROOT),
    }


def refusal(files: Files, now: float = NOW) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_ca(files, where="/ca", now=now)
    assert caught.value.problems
    assert "/ca" in str(caught.value)
    assert all(problem in str(caught.value) for problem in caught.value.problems)
    return " | ".join(caught.value.problems)


def test_a_new_ca_can_be_read_and_signs() -> None:
    ca = parse_ca(render_new(name="mine", now=NOW), where="/ca", now=NOW)
    assert len(load_certificates(ca.issue(WEB, ttl=60, now=NOW).chain_pem)) == 1


def test_an_intermediate_sends_the_chain_up_to_but_without_the_root() -> None:
    issued = parse_ca(three_levels(), where="/ca", now=NOW).issue(WEB, ttl=60, now=NOW)
    leaf, *above = load_certificates(issued.chain_pem)
    assert above == [CA, MIDDLE]
    assert is_issuer(CA, leaf)
    assert load_certificates(issued.roots_pem) == [ROOT]


def test_the_chain_file_may_be_absent_or_in_any_order() -> None:
    files = three_levels() | {"cert-chain.pem": pem(ROOT, MIDDLE)}
    assert parse_ca(files, where="/ca", now=NOW).intermediates == (CA, MIDDLE)
    direct = certify("ca", CA_KEY, ("root", ROOT_KEY))
    for chain in ({}, {"cert-chain.pem": b""}):
        files = {"ca-cert.pem": pem(direct), "ca-key.pem": pkcs8(CA_KEY), "root-cert.pem": pem(ROOT)} | chain
        assert parse_ca(files, where="/ca", now=NOW).intermediates == (direct,)


def test_no_leaf_outlives_an_intermediate() -> None:
    ca = parse_ca(three_levels(), where="/ca", now=NOW)
    assert ca.issue(WEB, ttl=25 * DAY, now=NOW).not_after == NOW + 20 * DAY


def test_several_roots_are_all_handed_on() -> None:
    other_key = new_key()
    other = certify("other root", other_key, ("other root", other_key))
    ca = parse_ca(three_levels() | {"root-cert.pem": pem(other, ROOT)}, where="/ca", now=NOW)
    assert load_certificates(ca.roots_pem) == [other, ROOT]


@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
@pytest.mark.parametrize("make", [new_key, lambda: rsa.generate_private_key(65537, 2048)])
def test_rsa_and_ec_keys_in_either_form_work(make: Callable[[], Key], form: PrivateFormat) -> None:
    key = make()
    root = pem(certify("root", key, ("root", key)))
    files = {
        "ca-cert.pem": root,
        "root-cert.pem": root,
        "ca-key.pem": key.private_bytes(Encoding.PEM, form, NoEncryption()),
    }
    leaf = load_certificates(parse_ca(files, where="/ca", now=NOW).issue(WEB, ttl=60, now=NOW).chain_pem)[0]
    assert is_issuer(load_certificates(root)[0], leaf)


@pytest.mark.parametrize("name", ["ca-cert.pem", "ca-key.pem", "root-cert.pem"])
def test_a_missing_file_is_named(name: str) -> None:
    files = three_levels()
    del files[name]
    assert refusal(files) == f"{name} is missing"


@pytest.mark.parametrize("name", ["ca-cert.pem", "ca-key.pem", "root-cert.pem", "cert-chain.pem"])
@pytest.mark.parametrize("content", [b"garbage", b"\xff\x00", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END "])
def test_a_broken_file_is_named(name: str, content: bytes) -> None:
    assert f"{name} holds no readable PEM" in refusal(three_levels() | {name: content})


def test_a_half_written_file_is_broken() -> None:
    assert "root-cert.pem" in refusal(three_levels() | {"root-cert.pem": pem(ROOT)[:-40]})


def test_every_problem_is_told_at_once() -> None:
    told = refusal({"ca-cert.pem": b"x", "root-cert.pem": b"y"})
    assert told.count(" | ") == 2


def test_the_key_of_another_certificate_is_refused() -> None:
    assert refusal(three_levels() | {"ca-key.pem": pkcs8(new_key())}) == "ca-key.pem is not the key of ca-cert.pem"


def test_an_encrypted_key_is_refused() -> None:
    encrypted = CA_KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    assert "encrypted; store it without a password" in refusal(three_levels() | {"ca-key.pem": encrypted})


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        (ed25519.Ed25519PrivateKey.generate(), "Ed25519"),
        (rsa.generate_private_key(65537, 1024), "RSA 1024"),
        (ec.generate_private_key(ec.SECP256K1()), "EC secp256k1"),
    ],
)
def test_a_key_that_peers_would_refuse_is_refused(key: Key | ed25519.Ed25519PrivateKey, kind: str) -> None:
    assert f"ca-key.pem is {kind};" in refusal(three_levels() | {"ca-key.pem": pkcs8(key)})


def test_a_certificate_that_is_no_ca_is_refused() -> None:
    leaf = certify("ca", CA_KEY, ("middle", MIDDLE_KEY), ca=False)
    assert "is no CA certificate" in refusal(three_levels() | {"ca-cert.pem": pem(leaf)})


def test_a_ca_outside_its_time_is_refused() -> None:
    assert "ca-cert.pem ended at 2027-02-14" in refusal(three_levels(), now=NOW + 40 * DAY)
    assert "begins only at 2027-01-14" in refusal(three_levels(), now=NOW - 2 * DAY)


def test_a_chain_that_does_not_reach_a_root_is_refused_with_both_names() -> None:
    told = refusal(three_levels() | {"cert-chain.pem": pem(CA)})
    assert "CN=ca, issued by CN=middle" in told
    assert "does not lead to a root in root-cert.pem" in told


def test_a_root_of_the_same_name_but_another_key_is_no_root_of_ours() -> None:
    key = new_key()
    namesake = certify("root", key, ("root", key))
    assert "does not lead to a root" in refusal(three_levels() | {"root-cert.pem": pem(namesake)})


def test_certificates_that_sign_each_other_end_the_search() -> None:
    one, two = new_key(), new_key()
    a, b = certify("a", one, ("b", two)), certify("b", two, ("a", one))
    files = {"ca-cert.pem": pem(a), "ca-key.pem": pkcs8(one), "root-cert.pem": pem(ROOT), "cert-chain.pem": pem(a, b)}
    assert "does not lead to a root" in refusal(files)


def test_no_key_shows_in_a_refusal() -> None:
    files = three_levels() | {"root-cert.pem": pkcs8(CA_KEY), "cert-chain.pem": pkcs8(ROOT_KEY)}
    told = refusal(files)
    for secret in (pkcs8(CA_KEY), pkcs8(ROOT_KEY)):
        assert secret.splitlines()[1].decode() not in told
