"""Addresses and authorities: one canonical form each, and nothing else is taken."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.core.model.address import (
    MAX_AUTHORITY,
    Address,
    HostPort,
    canonical_ip,
    from_sockaddr,
    parse_address,
    parse_authority,
)

PORTS = st.integers(1, 65535)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("10.0.0.7", "10.0.0.7"),
        ("FD00:0::7", "fd00::7"),
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("::ffff:a00:7", "10.0.0.7"),
        ("fe80::1%eth0", "fe80::1"),
    ],
)
def test_an_ip_address_has_one_form(text: str, canonical: str) -> None:
    assert canonical_ip(text) == canonical


@pytest.mark.parametrize("text", ["", "10.0.0", "10.0.0.256", "010.0.0.1", "fd00::x", "::ffff:10.0.0", "localhost"])
def test_what_is_no_ip_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="does not appear to be"):
        canonical_ip(text)


@given(st.ip_addresses(), PORTS)
def test_what_an_address_is_written_as_reads_back(ip: object, port: int) -> None:
    address = Address(canonical_ip(str(ip)), port)
    assert parse_address(str(address)) == parse_authority(str(address)) == address


@pytest.mark.parametrize(
    "text", ["10.0.0.7", "10.0.0.7:", "10.0.0.7:x", "10.0.0.7:65536", "fd00::7:80", "[10.0.0.7]:80", "[fd00::7]"]
)
def test_an_address_needs_its_port_and_ipv6_its_brackets(text: str) -> None:
    with pytest.raises(ValueError, match=r"ip:port|brackets|\[address\]"):
        parse_address(text)


def test_socket_addresses_lose_scope_and_mapping() -> None:
    assert from_sockaddr(("10.0.0.7", 80)) == Address("10.0.0.7", 80)
    assert from_sockaddr(("::ffff:10.0.0.7", 80, 0, 0)) == Address("10.0.0.7", 80)
    assert from_sockaddr(("fe80::1%eth0", 80, 0, 2)) == Address("fe80::1", 80)
    assert from_sockaddr(("fd00::7", 80, 0, 0)) == Address("fd00::7", 80)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("10.0.0.7:80", Address("10.0.0.7", 80)),
        ("[fd00::7]:15008", Address("fd00::7", 15008)),
        ("[FD00:0::7]:1", Address("fd00::7", 1)),
        ("[::ffff:10.0.0.7]:65535", Address("10.0.0.7", 65535)),
        ("web.default.svc.cluster.local:80", HostPort("web.default.svc.cluster.local", 80)),
        ("Web_1.example:80", HostPort("web_1.example", 80)),
        ("localhost:1", HostPort("localhost", 1)),
    ],
)
def test_authorities_are_read_in_canonical_form(text: str, target: Address | HostPort) -> None:
    for form in (text, str(target)):
        parsed = parse_authority(form)
        assert (type(parsed), parsed) == (type(target), target)


@pytest.mark.parametrize(
    "text",
    [
        "", ":", ":80", "10.0.0.7", "10.0.0.7:", "10.0.0.7:0", "10.0.0.7:65536", "10.0.0.7:+80", "10.0.0.7: 80",
        "10.0.0.7:٨٠", "10.0.0.7:000080", "10.0.0.256:80", "10.0.0:80", "10.0.0.07:80", "fd00::7:80", "[fd00::7]",
        "[fd00::7:80", "[10.0.0.7]:80", "[fe80::1%eth0]:80", "[]:80", "::::", "u@web:80", "web:80/path", "-web:80",
        "web-:80", "we b:80", "web..x:80", ".web:80", "wéb:80", "web\x00:80", "web%2e:80", f"{'a' * 64}.x:80",
        f"{'a.' * 127}aa:80", f"{'a' * MAX_AUTHORITY}:80", "1:80",
    ],
)  # fmt: skip
def test_every_other_authority_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="authority"):
        parse_authority(text)


def test_the_longest_name_fits() -> None:
    name = f"{'a.' * 126}a"
    assert parse_authority(f"{name}:65535") == HostPort(name, 65535)


@given(st.text(max_size=30) | st.from_regex(r"[\[\]0-9a-f:.]{0,20}:[0-9]{0,6}"))
def test_any_text_is_an_authority_that_reads_back_or_is_refused(text: str) -> None:
    try:
        parsed = parse_authority(text)
    except ValueError:
        return
    assert parse_authority(str(parsed)) == parsed
    assert 0 < parsed.port < 65536
