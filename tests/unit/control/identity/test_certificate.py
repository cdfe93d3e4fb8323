from __future__ import annotations

import base64

import msgspec
import pytest
from mesh_pki import WEB, MeshPki

from ztunnel.control.identity.certificate import (
    IssuedCertificate,
    check_issued,
    dump_entry,
    is_ca,
    is_issuer,
    read_facts,
    rfc3339,
)
from ztunnel.core.errors import IdentityUnavailable
from ztunnel.core.model.identity import Identity
from ztunnel.link.messages import CertificateIssued

NOW = 1_800_000_000.0


@pytest.fixture
def mesh() -> MeshPki:
    return MeshPki(now=NOW)


def as_issued(message: CertificateIssued) -> IssuedCertificate:
    fields = {field: getattr(message, field) for field in IssuedCertificate.__struct_fields__}
    return IssuedCertificate(**fields)


def test_a_good_answer_is_accepted(mesh: MeshPki) -> None:
    check_issued(WEB, as_issued(mesh.leaf(WEB)), now=NOW)


def test_a_certificate_of_another_identity_is_refused(mesh: MeshPki) -> None:
    other = as_issued(mesh.leaf(Identity("cluster.local", "default", "other")))
    with pytest.raises(IdentityUnavailable, match="sa/other, not spiffe://"):
        check_issued(WEB, other, now=NOW)


def test_a_certificate_without_identity_is_refused(mesh: MeshPki) -> None:
    with pytest.raises(IdentityUnavailable, match="for no identity"):
        check_issued(WEB, as_issued(mesh.odd([])), now=NOW)


def test_a_certificate_with_another_key_is_refused(mesh: MeshPki) -> None:
    mixed = msgspec.structs.replace(as_issued(mesh.leaf(WEB)), key_pem=mesh.leaf(WEB).key_pem)
    with pytest.raises(IdentityUnavailable, match="another key"):
        check_issued(WEB, mixed, now=NOW)


def test_a_certificate_that_has_ended_is_refused(mesh: MeshPki) -> None:
    with pytest.raises(IdentityUnavailable, match="ended at"):
        check_issued(WEB, as_issued(mesh.expired(WEB)), now=NOW)


@pytest.mark.parametrize("field", ["chain_pem", "key_pem", "roots_pem"])
@pytest.mark.parametrize("content", [b"", b"-----BEGIN CERTIFICATE-----\nxx\n-----END CERTIFICATE-----\n"])
def test_an_unreadable_answer_is_refused(mesh: MeshPki, field: str, content: bytes) -> None:
    broken = msgspec.structs.replace(as_issued(mesh.leaf(WEB)), **{field: content})
    with pytest.raises(IdentityUnavailable, match="cannot be read"):
        check_issued(WEB, broken, now=NOW)


def test_facts_say_what_people_want_to_know(mesh: MeshPki) -> None:
    facts = read_facts(mesh.leaf(WEB, ttl=600).chain_pem)[0]
    assert facts.uris == (str(WEB),)
    assert facts.issuer == "CN=test mesh"
    assert (facts.subject, facts.is_ca, facts.self_signed) == ("", False, False)
    assert (facts.key, facts.signature) == ("EC secp256r1", "sha256")
    assert (facts.not_before, facts.not_after) == (NOW - 120, NOW + 600)


def test_a_dump_entry_is_in_the_form_that_istioctl_reads(mesh: MeshPki) -> None:
    leaf = mesh.leaf(WEB, ttl=600)
    facts = read_facts(leaf.chain_pem)[0]
    entry = dump_entry(facts)
    assert base64.b64decode(entry["pem"]) == leaf.chain_pem
    assert int(entry["serialNumber"]) == facts.serial
    assert entry["validFrom"] == "2027-01-15T07:58:00Z"
    assert entry["expirationTime"] == "2027-01-15T08:10:00Z"


def test_issuers_are_told_by_signature_not_by_name(mesh: MeshPki) -> None:
    namesake = MeshPki(now=NOW).root
    assert namesake.subject == mesh.root.subject
    assert is_issuer(mesh.root, mesh.root)
    assert not is_issuer(namesake, mesh.root)
    assert is_ca(mesh.root)


def test_times_are_written_as_rfc_3339() -> None:
    assert rfc3339(0.9) == "1970-01-01T00:00:00Z"
