"""A child can move into a namespace for good, and ends with its parent; each in a process of its own."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from ztunnel.linux.netns import create_netns, netns_id

MOVE_IN = """
import sys
from pathlib import Path
from ztunnel.linux.enter import move_in
from ztunnel.linux.netns import netns_id
move_in(int(sys.argv[1]), hosts=Path(sys.argv[2]))
print(netns_id(None), Path("/etc/hosts").read_text(), sep="|", end="")
"""
PARENT = """
import subprocess, sys
from ztunnel.linux.enter import die_with_parent
child = subprocess.Popen(["sleep", "1000"], preexec_fn=die_with_parent, stdout=subprocess.DEVNULL)
print(child.pid, flush=True)
sys.stdin.read()
"""


def test_who_moves_in_has_that_network_and_its_own_hosts_file(namespaces: None, tmp_path: Path) -> None:
    hosts, own = tmp_path / "hosts", Path("/etc/hosts").read_text()
    hosts.write_text("10.96.0.10\tserver\n")
    fd = create_netns()
    try:
        command = [sys.executable, "-c", MOVE_IN, str(fd), str(hosts)]
        done = subprocess.run(command, pass_fds=[fd], capture_output=True, text=True, timeout=20, check=True)
        assert done.stdout == f"{netns_id(fd)}|10.96.0.10\tserver\n"
    finally:
        os.close(fd)
    assert Path("/etc/hosts").read_text() == own


def test_what_may_not_be_entered_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with (tmp_path / "no-namespace").open("w") as file:
        command = [sys.executable, "-c", MOVE_IN, str(file.fileno()), "/dev/null"]
        done = subprocess.run(command, pass_fds=[file.fileno()], capture_output=True, text=True, timeout=20)
    assert done.returncode == 1
    assert "PlatformError: cannot enter the network namespace: Invalid argument" in done.stderr


@pytest.mark.parametrize("way", ["end", "kill -9"])
def test_a_child_ends_with_its_parent(way: str) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", PARENT], stdin=pipe, stdout=pipe, text=True) as parent:
        assert parent.stdout is not None
        child = os.pidfd_open(int(parent.stdout.readline()))
        if way == "kill -9":
            parent.kill()
        parent.communicate(timeout=20)
    try:
        assert select.select([child], [], [], 20)[0], "the child lives on"
    finally:
        os.close(child)
