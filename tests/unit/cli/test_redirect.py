"""`ztunnel redirect` with the capture in memory: options become a spec, outcomes become text, JSON and exit codes."""

from __future__ import annotations

import json

import pytest

from ztunnel.cli import redirect, run
from ztunnel.core.errors import PlatformError
from ztunnel.core.model.capture import CaptureMode
from ztunnel.linux.redirect.fake import FakeCapture
from ztunnel.linux.redirect.model import CaptureSpec

HERE = "/proc/self/ns/net"


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch) -> FakeCapture:
    """One namespace, whatever its descriptor."""
    fake = FakeCapture()
    monkeypatch.setattr(redirect, "apply", lambda spec, fd, backend: fake.apply(spec))
    monkeypatch.setattr(redirect, "verify", lambda spec, fd, backend: fake.verify(spec))
    monkeypatch.setattr(redirect, "remove", lambda fd, backend: fake.remove())
    monkeypatch.setattr(redirect, "present", lambda fd: fake.namespaces.get(None, {}))
    return fake


def test_options_become_the_spec(capture: FakeCapture) -> None:
    command = f"redirect apply --netns {HERE} --mode tproxy --no-ipv6 --dns --no-inbound --exclude-uids 7"
    command += " --exclude-outbound-ports 5432,6379 --exclude-inbound-ports 22 --virtual-interfaces vm0"
    command += " --exclude-outbound-cidrs 10.1.0.0/16 --exclude-inbound-cidrs 10.2.0.0/16,fd02::/64"
    assert run(command.split()) == 0
    expected = CaptureSpec(
        mode=CaptureMode.TPROXY,
        ipv6=False,
        dns=True,
        inbound=False,
        exclude_uids=(7,),
        exclude_outbound_ports=(5432, 6379),
        exclude_inbound_ports=(22,),
        virtual_interfaces=("vm0",),
        exclude_outbound_cidrs=("10.1.0.0/16",),
        exclude_inbound_cidrs=("10.2.0.0/16", "fd02::/64"),
    )
    assert capture.verify(expected) == []


@pytest.mark.parametrize(("mark", "mask"), [(77, 0xFFF), (70_000, 0xFFFFFFFF)])
def test_rules_leave_an_agents_own_mark_alone_whichever_it_is(
    capture: FakeCapture, monkeypatch: pytest.MonkeyPatch, mark: int, mask: int
) -> None:
    expected = CaptureSpec(mode=CaptureMode.REDIRECT, mark=mark, mark_mask=mask)
    assert run(["redirect", "apply", "--netns", HERE, "--mark", str(mark)]) == 0
    assert capture.verify(expected) == []
    monkeypatch.setenv("PACKET_MARK", str(mark))
    assert run(["redirect", "verify", "--netns", HERE]) == 0


def test_a_mark_that_no_packet_can_have_is_refused(capture: FakeCapture) -> None:
    assert run(["redirect", "apply", "--netns", HERE, "--mark", "0"]) == 2


def test_apply_tells_what_it_changed(capture: FakeCapture, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["redirect", "apply", "--netns", HERE]) == 0
    assert "added ipv4 nat OUTPUT: -j ISTIO_OUTPUT" in capsys.readouterr().out
    assert run(["redirect", "apply", "--netns", HERE]) == 0
    assert capsys.readouterr().out == "nothing to change\n"
    assert run(["redirect", "apply", "--netns", HERE, "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"changes": []}


def test_verify_ends_with_1_when_rules_differ(capture: FakeCapture, capsys: pytest.CaptureFixture[str]) -> None:
    run(["redirect", "apply", "--netns", HERE])
    assert run(["redirect", "verify"]) == 0
    capture.namespaces[None]["ipv4 nat OUTPUT"] = []
    capsys.readouterr()
    assert run(["redirect", "verify"]) == 1
    assert capsys.readouterr().out == "ipv4 nat OUTPUT: missing: -j ISTIO_OUTPUT\n"
    assert run(["redirect", "verify", "-o", "json"]) == 1
    [row] = json.loads(capsys.readouterr().out)["differences"]
    assert row == {"where": "ipv4 nat OUTPUT", "kind": "missing", "what": "-j ISTIO_OUTPUT"}


def test_show_and_remove(capture: FakeCapture, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["redirect", "show"]) == 0
    assert capsys.readouterr().out == "no capture rules\n"
    run(["redirect", "apply", "--netns", HERE])
    capsys.readouterr()
    assert run(["redirect", "show"]) == 0
    assert "ipv4 nat OUTPUT\n  -j ISTIO_OUTPUT\n" in capsys.readouterr().out
    assert run(["redirect", "remove"]) == 0
    assert "removed ipv4 nat OUTPUT: -j ISTIO_OUTPUT" in capsys.readouterr().out
    assert capture.namespaces == {}


def test_a_dry_run_prints_and_changes_nothing(capture: FakeCapture, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["redirect", "apply", "--dry-run", "--backend", "iptables-nft"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("# iptables-nft-restore --noflush\n*mangle\n")
    assert "# ip -6 -batch -\nrule add fwmark 0x111/0xfff lookup 100 pref 32764\n" in out
    assert capture.namespaces == {}


def test_the_namespace_one_is_in_is_never_captured_by_accident(
    capture: FakeCapture, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["redirect", "apply"]) == 2
    assert "--netns NAME is needed" in capsys.readouterr().err
    assert capture.namespaces == {}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--netns", "no-such-namespace"], "ip netns list"),
        (["--netns", HERE, "--exclude-outbound-ports", "http"], "not a list of numbers"),
        (["--netns", HERE, "--exclude-outbound-ports", "70000"], "70000 is not a port"),
        (["--netns", HERE, "--mode", "none"], "'none' is not one of"),
        (["--mode", "node", "--dns"], "use redirect or tproxy"),
    ],
)
def test_what_cannot_be_done_ends_with_2_and_says_why(
    capture: FakeCapture, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["redirect", "apply", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_missing_rights_end_with_2_and_what_to_do(capture: FakeCapture, capsys: pytest.CaptureFixture[str]) -> None:
    capture.refusal = PlatformError("nft failed: Operation not permitted", hint="run as root, or grant CAP_NET_ADMIN")
    for command in (["apply", "--netns", HERE], ["verify"], ["remove"]):
        assert run(["redirect", *command]) == 2
        assert "hint: run as root" in capsys.readouterr().err
