"""The rules of REDIRECT are Istio's, and a spec that cannot work is refused with everything that is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ztunnel.core.errors import ConfigError
from ztunnel.core.model.capture import CaptureMode
from ztunnel.linux.redirect import render_iptables, render_nft
from ztunnel.linux.redirect.model import CaptureSpec
from ztunnel.linux.redirect.rules import rules

VECTORS = Path(__file__).parents[5] / "shared/vectors/istio-data"
VARIANTS = {
    "default": {"dns": True},
    "dns_pod_disabled_and_on_globally": {"dns": False},
    "dns_pod_enabled_and_off_globally": {"dns": True},
    "ingress": {"inbound": False},
    "ingress_and_virtual_interfaces": {"inbound": False, "virtual_interfaces": ("fake1s0f0", "fake1s0f1")},
    "virtual_interfaces": {"virtual_interfaces": ("fake1s0f0", "fake1s0f1")},
}
CASES = [(name, ipv6) for name in VARIANTS for ipv6 in (False, True)]


def istio_spec(name: str, ipv6: bool) -> CaptureSpec:
    return CaptureSpec(
        mode=CaptureMode.REDIRECT,
        ipv6=ipv6,
        probe_source6="e9ac:1e77:90ca:399f:4d6d:ece2:2f9b:3164",
        **VARIANTS[name],  # type: ignore[arg-type]
    )


def golden(tool: str, name: str, ipv6: bool) -> str:
    file = VECTORS / tool / f"{name}{'_ipv6' if ipv6 else ''}.golden"
    if not file.exists():
        pytest.skip(f"Istio's golden files are not here ({file})")
    return file.read_text()


def iptables_meaning(text: str) -> dict[str, list[frozenset[str]]]:
    """Per table and chain, each rule as the set of its options: their order within a rule means nothing."""
    found: dict[str, list[frozenset[str]]] = {}
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line.removeprefix("*").strip()
        elif line.startswith("-A "):
            _, chain, rule = line.split(" ", 2)
            rule = re.sub(r" ?-m (tcp|udp|mark|connmark)\b", "", rule).replace("--to-port ", "--to-ports ")
            options = re.findall(r"(?:! )?--?\S+(?: [^-!\s]\S*)?", rule)
            found.setdefault(f"{table} {chain}", []).append(frozenset(options))
        elif line.startswith("-N "):
            found.setdefault(f"{table} {line[3:]}", [])
    return found


@pytest.mark.parametrize(("name", "ipv6"), CASES)
def test_the_iptables_rules_are_istios(name: str, ipv6: bool) -> None:
    """The golden files hold the IPv4 tables, followed by the IPv6 ones where IPv6 is on."""
    tables = golden("cni-iptables", name, ipv6).split("* mangle")[1:]
    ruleset = rules(istio_spec(name, ipv6))
    assert len(tables) == len(ruleset.families)
    for family, text in zip(ruleset.families, tables, strict=True):
        expected = iptables_meaning("* mangle" + text)
        assert len(expected) >= 8
        assert iptables_meaning(render_iptables.render(ruleset, family)) == expected


CLAUSES = re.compile(
    r"[io]ifname (?:!= )?\S+|meta l4proto \S+|ip6? [sd]addr (?:!= )?\S+|(?:tcp|udp) [sd]port (?:!= )?\S+"
    r"|(?:meta|ct) mark & \S+ [!=]= \S+"
)


def nft_meaning(text: str) -> dict[str, list[tuple[frozenset[str], str]]]:
    """Per chain, each rule as the set of its clauses and its action."""
    found: dict[str, list[tuple[frozenset[str], str]]] = {}
    for line in text.splitlines():
        line = re.sub(r"\s+", " ", line).replace('"', "").replace(" and ", " & ").strip()
        if line.startswith("add chain "):
            name, _, definition = line.removeprefix("add chain ").partition(" {")
            found[name] = [(frozenset(), definition)]
        elif line.startswith("add rule "):
            words = line.split(" ", 5)
            rule = re.sub(r"(?<!meta )(?<!ct )\bmark & (\S+) ([!=]=)", r"meta mark & \1 \2", words[5])
            match, _, action = rule.rpartition("counter ")
            clauses = frozenset(CLAUSES.findall(match))
            assert "".join(CLAUSES.split(match)).strip() == "", f"not understood: {line}"
            found[" ".join(words[2:5])].append((clauses, action))
    return found


@pytest.mark.parametrize(("name", "ipv6"), CASES)
def test_the_nft_rules_are_istios(name: str, ipv6: bool) -> None:
    expected = nft_meaning(golden("cni-nftables", name, ipv6))
    assert len(expected) >= 8
    assert nft_meaning(render_nft.render(rules(istio_spec(name, ipv6)))) == expected


def problems(**options: object) -> str:
    with pytest.raises(ConfigError) as refused:
        rules(CaptureSpec(**{"mode": CaptureMode.REDIRECT, **options}))  # type: ignore[arg-type]
    return " / ".join(refused.value.problems)


def test_everything_that_is_wrong_is_told_at_once() -> None:
    told = problems(
        exclude_outbound_ports=(0, 70000),
        exclude_inbound_cidrs=("10.0.0.0/33",),
        virtual_interfaces=("eth0 -j ACCEPT",),
        mark=0x1539,
    )
    assert told.split(" / ") == [
        "exclude_outbound_ports: 0 is not a port",
        "exclude_outbound_ports: 70000 is not a port",
        "exclude_inbound_cidrs: '10.0.0.0/33' does not appear to be an IPv4 or IPv6 network",
        "virtual_interfaces: 'eth0 -j ACCEPT' is not an interface's name",
        "mark 0x1539 does not fit the mask 0xfff",
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ipv4": False, "ipv6": False}, "neither IPv4 nor IPv6"),
        ({"mode": CaptureMode.NONE}, "no rules"),
        ({"mode": CaptureMode.NODE, "dns": True}, "DNS capture does not exist in node mode"),
        ({"mode": CaptureMode.NODE, "exclude_uids": (7,)}, "the node does not see them"),
        ({"mark": 0}, "does not fit"),
        ({"mark": 0x1111, "mark_mask": 0xFFFF}, "mark 0x1111 is that of captured connections (0x111/0xfff)"),
        ({"pod_interfaces": ("",)}, "is not an interface's name"),
        ({"pod_interfaces": ("a" * 16,)}, "is not an interface's name"),
        ({"pod_interfaces": ("-j",)}, "is not an interface's name"),
        ({"pod_interfaces": ('a"; drop',)}, "is not an interface's name"),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, object], words: str) -> None:
    assert words in problems(**options)


@pytest.mark.parametrize("mode", [CaptureMode.REDIRECT, CaptureMode.TPROXY, CaptureMode.NODE])
@pytest.mark.parametrize("family", [4, 6])
def test_a_family_that_is_off_is_not_mentioned(mode: CaptureMode, family: int) -> None:
    spec = CaptureSpec(
        mode=mode,
        ipv4=family == 4,
        ipv6=family == 6,
        pod_ips=("10.0.0.1", "fd00::1"),
        exclude_outbound_cidrs=("10.1.0.0/16", "fd01::/16"),
    )
    text = render_nft.render(rules(spec))
    assert ("ip6 " in text) == (family == 6)
    assert (" ip " in text) == (family == 4)


def test_a_network_is_written_by_its_first_address() -> None:
    spec = CaptureSpec(mode=CaptureMode.REDIRECT, exclude_outbound_cidrs=("10.1.2.3/16",))
    assert "-d 10.1.0.0/16 -j RETURN" in render_iptables.render(rules(spec), 4)
