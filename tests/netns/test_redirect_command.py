"""The command on a real namespace, from nothing to nothing."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from netns_builder import Topology

from ztunnel.cli import run


@pytest.mark.parametrize("backend", ["nft", "iptables-nft", "iptables-legacy"])
def test_apply_verify_show_remove(topology: Topology, backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    pod = topology.pod("pod", "10.0.1.2", "fd00:1::2")
    where = ["--netns", pod.path]
    assert run(["redirect", "verify", *where, "--backend", backend]) == 1
    assert run(["redirect", "apply", *where, "--backend", backend]) == 0
    assert run(["redirect", "verify", *where]) == 0
    capsys.readouterr()
    assert run(["redirect", "show", *where]) == 0
    assert "15001" in capsys.readouterr().out
    assert run(["redirect", "remove", *where]) == 0
    capsys.readouterr()
    assert run(["redirect", "show", *where]) == 0
    assert capsys.readouterr().out == "no capture rules\n"


@pytest.mark.root
def test_a_namespace_by_its_name(topology: Topology, capsys: pytest.CaptureFixture[str]) -> None:
    pod = topology.pod("pod", "10.0.1.2")
    name = f"zt-redirect-{os.getpid()}"
    topology.publish(pod, name)
    assert run(["redirect", "apply", "--netns", name]) == 0
    assert run(["redirect", "verify", "--netns", pod.path]) == 0
    assert run(["redirect", "remove", "--netns", name]) == 0


@pytest.mark.root
def test_without_rights_it_says_so_in_a_sentence(topology: Topology) -> None:
    """As an ordinary user of the machine."""
    pod = topology.pod("pod", "10.0.1.2")
    source = f"import sys; sys.path[:0] = {sys.path!r}; from ztunnel.cli import run; "
    script = source + f"sys.exit(run(['redirect', 'apply', '--netns', '/proc/{os.getpid()}/fd/{pod.fd}']))"
    done = pod.run(["setpriv", "--reuid", "65534", "--clear-groups", sys.executable, "-c", script], check=False)
    assert done.returncode == 2, done.stderr
    assert "error: " in done.stderr
    assert "hint: run as root" in done.stderr


@pytest.mark.root
@pytest.mark.parametrize("backend", ["nft", "iptables-nft", "iptables-legacy"])
def test_root_of_a_user_namespace_is_root_enough(backend: str) -> None:
    """Made by `unshare`, as an ordinary user does: neither iptables' lock nor its list of tables can be opened."""
    steps = (
        "from ztunnel.linux.netns import bring_up_loopback; bring_up_loopback(); "
        "here = ['--netns', '/proc/self/ns/net']; "
        f"codes = [run(['redirect', 'apply', *here, '--backend', '{backend}']), run(['redirect', 'verify', *here]), "
        "run(['redirect', 'remove', *here]), run(['redirect', 'verify', *here])]; sys.exit(codes != [0, 0, 0, 1])"
    )
    script = f"import sys; sys.path[:0] = {sys.path!r}; from ztunnel.cli import run; {steps}"
    command = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "unshare", "-Urnm", sys.executable]
    done = subprocess.run([*command, "-c", script], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
