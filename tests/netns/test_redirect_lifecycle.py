"""Apply, verify and remove on a real namespace: idempotent, exact, without a trace, also after a failure or a kill."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from netns_builder import Namespace, Pod, Topology

from ztunnel.core.errors import PlatformError
from ztunnel.core.model.capture import CaptureMode
from ztunnel.linux.redirect import tools
from ztunnel.linux.redirect.apply import apply, detect, remove, render
from ztunnel.linux.redirect.model import Backend, CaptureSpec
from ztunnel.linux.redirect.verify import verify

BACKENDS = [pytest.param(backend, id=backend.value) for backend in Backend]
MODES = [pytest.param(mode, id=mode.value) for mode in (CaptureMode.REDIRECT, CaptureMode.TPROXY, CaptureMode.NODE)]
EVERYTHING = {
    "exclude_outbound_ports": (81,),
    "exclude_inbound_ports": (82,),
    "exclude_outbound_cidrs": ("10.9.0.0/16", "fd09::/64"),
    "exclude_inbound_cidrs": ("10.8.0.0/16", "fd08::/64"),
    "virtual_interfaces": ("vm0",),
}


def full_spec(mode: CaptureMode) -> CaptureSpec:
    """With a rule of every kind that the mode has; user 0, because a user namespace has no other."""
    if mode is CaptureMode.NODE:
        pods = {"pod_interfaces": ("p-one", "p-two"), "pod_ips": ("10.0.1.2", "fd00::2")}
        return CaptureSpec(mode=mode, **EVERYTHING, **pods)  # type: ignore[arg-type]
    return CaptureSpec(mode=mode, dns=True, exclude_uids=(0,), **EVERYTHING)  # type: ignore[arg-type]


def snapshot(pod: Namespace) -> str:
    """All rules and routes, without counters and the order in which chains were made.

    The tables of iptables-legacy cannot be removed and mean nothing when they are empty.
    """
    tables = re.split(r"\n(?=table )", pod.run(["nft", "-s", "list", "ruleset"]).stdout)
    parts = [
        "\n".join(sorted(re.split(r"\n+(?=\t(?:chain|set) )", table.rstrip().removesuffix("}").rstrip())))
        for table in sorted(tables)
    ]
    for family in ("-4", "-6"):
        parts.append(pod.run(["ip", family, "rule"]).stdout)
        parts.append(pod.run(["ip", family, "route", "show", "table", "all"]).stdout)
    for tool in ("iptables-legacy-save", "ip6tables-legacy-save"):
        lines = pod.run([tool]).stdout.splitlines()
        parts += [line for line in lines if line.startswith("-A") or (line.startswith(":") and " ACCEPT" not in line)]
    return "\n".join(parts)


@pytest.fixture
def pod(topology: Topology) -> Pod:
    return topology.pod("pod", "10.0.1.2", "fd00:1::2")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
def test_ten_applies_equal_one_and_remove_leaves_nothing(pod: Pod, mode: CaptureMode, backend: Backend) -> None:
    spec = full_spec(mode)
    untouched = snapshot(pod)
    assert len(apply(spec, pod.fd, backend)) > 20
    once = snapshot(pod)
    assert verify(spec, pod.fd, backend) == []
    for _ in range(9 if mode is CaptureMode.REDIRECT else 1):
        assert apply(spec, pod.fd, backend) == []
    assert snapshot(pod) == once != untouched
    assert len(remove(pod.fd)) > 20
    assert snapshot(pod) == untouched
    assert remove(pod.fd) == []


FOREIGN_IPTABLES = """\
*nat
:FOREIGN - [0:0]
-A PREROUTING -p tcp --dport 9999 -j FOREIGN
-A OUTPUT -d 10.77.0.0/16 -j ACCEPT
-A FOREIGN -j RETURN
COMMIT
*mangle
-A OUTPUT -m mark --mark 0x7 -j ACCEPT
COMMIT
"""
FOREIGN_NFT = "table inet foreign {\n chain c {\n type nat hook output priority -100\n tcp dport 9999 accept\n }\n}\n"
NATIVE_NAT = """\
table ip nat {
 set inside {
  type ipv4_addr; flags interval; elements = { 10.0.0.0/8 }
 }
 chain postrouting {
  type nat hook postrouting priority srcnat; policy accept;
  ip saddr @inside oifname "eth9" counter masquerade comment "not iptables }"
 }
}
"""


def add_foreign(pod: Pod) -> None:
    for name in ("iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"):
        text = (
            FOREIGN_IPTABLES if name.startswith("iptables") else FOREIGN_IPTABLES.replace("10.77.0.0/16", "fd77::/16")
        )
        pod.run([f"{name}-restore", "--noflush"], stdin=text)
    pod.run(["nft", "-f", "-"], stdin=FOREIGN_NFT)
    pod.run(["ip", "rule", "add", "fwmark", "0x9", "lookup", "100", "pref", "1000"])
    pod.run(["ip", "route", "add", "10.66.0.0/16", "dev", "eth0", "table", "100"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_foreign_rules_survive(pod: Pod, backend: Backend) -> None:
    add_foreign(pod)
    foreign = snapshot(pod)
    for mode in (CaptureMode.REDIRECT, CaptureMode.TPROXY):
        spec = full_spec(mode)
        apply(spec, pod.fd, backend)
        apply(spec, pod.fd, backend)
        assert verify(spec, pod.fd, backend) == []
        with_ours = snapshot(pod)
        for line in foreign.splitlines():
            assert line in with_ours
    remove(pod.fd)
    assert snapshot(pod) == foreign


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_table_of_nft_with_the_name_of_iptables_own_survives(pod: Pod, backend: Backend) -> None:
    """As a router has it in its nftables.conf; iptables-save does not show it."""
    pod.run(["nft", "-f", "-"], stdin=NATIVE_NAT)
    foreign = pod.run(["nft", "-s", "list", "table", "ip", "nat"]).stdout
    assert remove(pod.fd) == []
    apply(full_spec(CaptureMode.REDIRECT), pod.fd, backend)
    remove(pod.fd)
    assert pod.run(["nft", "-s", "list", "table", "ip", "nat"]).stdout == foreign


def test_istios_own_rules_are_these(pod: Pod, topology: Topology) -> None:
    """The kernel sees no difference between Istio's golden text and ours, in either tool."""
    vectors = Path(__file__).parents[3] / "shared/vectors/istio-data"
    if not vectors.exists():
        pytest.skip(f"Istio's golden files are not here ({vectors})")
    spec = CaptureSpec(mode=CaptureMode.REDIRECT, dns=True, probe_source6="e9ac:1e77:90ca:399f:4d6d:ece2:2f9b:3164")
    theirs = topology.pod("theirs", "10.0.1.3", "fd00:1::3")
    theirs.run(["nft", "-f", "-"], stdin=(vectors / "cni-nftables/default_ipv6.golden").read_text())
    apply(spec, pod.fd, Backend.NFT)
    listed = [one.run(["nft", "-s", "list", "ruleset"]).stdout for one in (theirs, pod)]
    reordered = [
        re.sub(r"(meta mark & \S+ != \S+) (udp dport 53)", r"\2 \1", text) for text in listed
    ]  # the one rule whose matches Istio writes in another order
    assert "redirect to :15053" in reordered[0]
    assert reordered[0] == reordered[1]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
def test_the_dry_run_is_what_the_tools_take(pod: Pod, mode: CaptureMode, backend: Backend) -> None:
    """Applied by hand, line for line, it is the same as applied by the agent."""
    spec = full_spec(mode)
    for part in render(spec, backend).split("# ")[1:]:
        command, _, text = part.partition("\n")
        pod.run(command.split(), stdin=text)
    assert verify(spec, pod.fd, backend) == []
    assert apply(spec, pod.fd, backend) == []


TAMPERING = {
    Backend.NFT: [
        ("nft flush chain inet istio-ambient-mangle istio-output", "nft istio-ambient-mangle istio-output: missing"),
        ("nft delete table inet istio-ambient-nat", "nft istio-ambient-nat output: missing: jump istio-output"),
        (
            "nft add rule inet istio-ambient-nat istio-output accept",
            "nft istio-ambient-nat istio-output: unexpected: accept",
        ),
    ],
    Backend.IPTABLES_NFT: [
        ("iptables-nft -t nat -D OUTPUT -j ISTIO_OUTPUT", "iptables-nft ipv4 nat OUTPUT: missing: -j ISTIO_OUTPUT"),
        ("ip6tables-nft -t nat -A OUTPUT -j ISTIO_OUTPUT", "iptables-nft ipv6 nat OUTPUT: unexpected: -j ISTIO_OUTPUT"),
        (
            "iptables-nft -t nat -D ISTIO_PRERT 1",
            "iptables-nft ipv4 nat ISTIO_PRERT: missing: -s 169.254.7.127/32",
        ),
    ],
    Backend.IPTABLES_LEGACY: [
        (
            "iptables-legacy -t nat -F ISTIO_OUTPUT",
            "iptables-legacy ipv4 nat ISTIO_OUTPUT: missing: -d 169.254.7.127",
        ),
        (
            "ip6tables-legacy -t nat -I ISTIO_PRERT -j RETURN",
            "iptables-legacy ipv6 nat ISTIO_PRERT: unexpected: -j RETURN",
        ),
        ("ip rule del pref 32764", "ipv4 rule: missing: 32764: from all fwmark 0x111/0xfff lookup 100"),
        ("ip -6 route flush table 100", "ipv6 route table 100: missing: local default dev lo"),
    ],
}


@pytest.mark.parametrize("backend", BACKENDS)
def test_verify_names_what_differs_and_apply_repairs_it(pod: Pod, backend: Backend) -> None:
    spec = CaptureSpec(mode=CaptureMode.REDIRECT)
    apply(spec, pod.fd, backend)
    for command, expected in TAMPERING[backend]:
        pod.run(command.split())
        told = [str(difference) for difference in verify(spec, pod.fd, backend)]
        assert any(line.startswith(expected) for line in told), told
        assert apply(spec, pod.fd, backend) != []
        assert verify(spec, pod.fd, backend) == []


def test_verify_tells_another_mode_and_another_backend(pod: Pod) -> None:
    redirect, tproxy = CaptureSpec(mode=CaptureMode.REDIRECT), CaptureSpec(mode=CaptureMode.TPROXY)
    apply(redirect, pod.fd, Backend.NFT)
    assert any("ztunnel-mangle" in str(difference) for difference in verify(tproxy, pod.fd, Backend.NFT))
    told = {str(difference).partition(" ")[0] for difference in verify(redirect, pod.fd, Backend.IPTABLES_NFT)}
    assert told == {"nft", "iptables-nft"}


def test_a_change_of_mode_or_backend_leaves_nothing_of_the_old(pod: Pod) -> None:
    untouched = snapshot(pod)
    for mode in (CaptureMode.REDIRECT, CaptureMode.NODE, CaptureMode.TPROXY):
        for backend in Backend:
            spec = full_spec(mode)
            apply(spec, pod.fd, backend)
            assert verify(spec, pod.fd) == []
            assert detect(pod.fd) is backend
    remove(pod.fd)
    assert snapshot(pod) == untouched


def test_a_family_that_is_switched_off_goes(pod: Pod) -> None:
    for backend in Backend:
        apply(CaptureSpec(mode=CaptureMode.REDIRECT), pod.fd, backend)
        only4 = CaptureSpec(mode=CaptureMode.REDIRECT, ipv6=False)
        assert all("ipv6" in change or "ip6" in change for change in apply(only4, pod.fd, backend))
        assert verify(only4, pod.fd, backend) == []


def test_where_ipv6_is_off_it_is_left_out(pod: Pod) -> None:
    pod.run(["sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/lo/disable_ipv6"])
    spec = CaptureSpec(mode=CaptureMode.REDIRECT)
    for backend in Backend:
        assert not any(
            "ip6" in change or "ipv6" in change for change in apply(spec, pod.fd, backend) if "added" in change
        )
        assert verify(spec, pod.fd, backend) == []


class Stopped(BaseException):
    """Stands for the end of the process: nothing catches it."""


class Budget:
    """Lets the tools make so many changes, then raises; reading is free."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 10**6
        self.error: BaseException = Stopped()
        self._run = tools.run
        monkeypatch.setattr(tools, "run", self._counted)

    def _counted(self, argv: list[str], *, stdin: str = "", netns: int | None = None) -> str:
        if stdin:
            self.left -= 1
            if self.left == -1:
                raise self.error
        return self._run(argv, stdin=stdin, netns=netns)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_agent_that_ends_half_way_is_cleaned_up(pod: Pod, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the step: remove cleans fully, and another apply completes."""
    spec = full_spec(CaptureMode.TPROXY)
    untouched = snapshot(pod)
    budget = Budget(monkeypatch)
    for steps in range(20):
        budget.left = steps
        try:
            apply(spec, pod.fd, backend)
            break
        except Stopped:
            budget.left = 10**6
        remove(pod.fd)
        assert snapshot(pod) == untouched, f"after {steps} steps of apply"
    assert steps >= 3
    for steps in range(20):
        budget.left = 10**6
        apply(spec, pod.fd, backend)
        assert verify(spec, pod.fd, backend) == []
        budget.left = steps
        try:
            remove(pod.fd)
            break
        except Stopped:
            budget.left = 10**6
        remove(pod.fd)
        assert snapshot(pod) == untouched, f"after {steps} steps of remove"
    assert steps >= 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_apply_that_is_refused_half_way_changes_nothing(
    pod: Pod, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = Budget(monkeypatch)
    budget.error = PlatformError("refused")
    before = full_spec(CaptureMode.REDIRECT)
    for first in (False, True):
        if first:
            apply(before, pod.fd, backend)
        as_it_was = snapshot(pod)
        for steps in range(20):
            budget.left = steps
            try:
                apply(full_spec(CaptureMode.TPROXY), pod.fd, backend)
                break
            except PlatformError:
                assert snapshot(pod) == as_it_was, f"after {steps} steps"
        assert steps >= 1
        budget.left = 10**6
        remove(pod.fd)


LOOP = """
import sys
from ztunnel.core.model.capture import CaptureMode
from ztunnel.linux.netns import open_netns
from ztunnel.linux.redirect.apply import apply, remove
from ztunnel.linux.redirect.model import Backend, CaptureSpec
netns = open_netns(sys.argv[1])
print("ready", flush=True)
while True:
    for backend in Backend:
        apply(CaptureSpec(mode=CaptureMode.REDIRECT, dns=True), netns, backend)
        apply(CaptureSpec(mode=CaptureMode.TPROXY, dns=True), netns, backend)
        remove(netns)
"""


def test_kill_9_at_any_moment_leaves_what_remove_cleans(pod: Pod) -> None:
    untouched = snapshot(pod)
    for delay in (0.03, 0.11, 0.19, 0.27, 0.35, 0.6):
        with subprocess.Popen([sys.executable, "-c", LOOP, pod.path], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(delay)
            child.kill()
        remove(pod.fd)
        assert snapshot(pod) == untouched, f"killed after {delay} s"


def test_missing_tools_are_named_with_their_package(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "_PATH", "/nowhere")
    with pytest.raises(PlatformError, match="no tool for capture rules is installed") as refused:
        apply(CaptureSpec(mode=CaptureMode.REDIRECT), pod.fd)
    assert "nftables or iptables" in refused.value.hint
    with pytest.raises(PlatformError, match="tools of iptables-legacy are not installed"):
        apply(CaptureSpec(mode=CaptureMode.REDIRECT), pod.fd, Backend.IPTABLES_LEGACY)
