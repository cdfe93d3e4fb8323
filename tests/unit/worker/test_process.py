"""A worker as a process: it serves while its leash holds, and makes room for a newer one after an upgrade.

In a process of its own, because it changes signals and memory for good.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import ztunnel
from ztunnel.link.leash import hand
from ztunnel.link.messages import VERSION
from ztunnel.link.unix import socket_pair
from ztunnel.worker import process

PROGRAM = """
import socket, sys
from ztunnel.config.settings import Settings
from ztunnel.core.errors import PlatformError
from ztunnel.worker import process
try:
    process.run(3, socket.socket(fileno=int(sys.argv[1])), Settings(), lambda spec: None)
except PlatformError as error:
    sys.exit(f"{error}; {error.hint}")
print(open("/proc/self/comm").read())
"""


@pytest.fixture
def start(request: pytest.FixtureRequest):
    """Starts a worker on this leash."""

    def started(leash: socket.socket) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(leash.fileno())],
            pass_fds=[leash.fileno()],
            env={**os.environ, "PYTHONPATH": str(Path(ztunnel.__file__).parent.parent)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        request.addfinalizer(process.kill)
        leash.close()
        return process

    return started


def control_half(leash: socket.socket, version: str) -> socket.socket:
    """A control half that says no more than its version; it has heard the worker when this returns."""
    above, below = socket_pair()
    with below:
        assert hand(leash, 3, below)
    above.settimeout(20)
    above.send(b"\x00" + bytes(4) + version.encode())
    hello, serving = above.recv(1000), above.recv(1000)
    assert hello.endswith(str(VERSION).encode())
    assert b"Serving" in serving
    return above


def test_it_greets_one_control_half_after_the_other_and_ends_with_its_leash(start) -> None:
    above, below = socket_pair()
    with above:
        worker = start(below)
        for _ in range(2):
            control_half(above, str(VERSION)).close()
        assert worker.poll() is None
    out, err = worker.communicate(timeout=20)
    assert (out.strip(), err, worker.returncode) == ("ztunnel-w3", "", 0)


def test_a_control_half_of_another_release_ends_it_for_a_newer_one(start) -> None:
    above, below = socket_pair()
    with above:
        worker = start(below)
        with control_half(above, "99"):
            _, err = worker.communicate(timeout=20)
    assert worker.returncode == 1
    assert "worker 3 cannot go on after an upgrade" in err
    assert f"version '99', this process of {VERSION}" in err


def test_a_thread_that_carries_bytes_asks_for_short_turns():
    program = (
        "import sys; from ztunnel.worker import process; from ztunnel.linux.schedule import set_turn, turn;"
        "process.hurry(); print(turn() == process.TURN or not set_turn(process.TURN));"
        "print(round(sys.getswitchinterval(), 9))"
    )
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert output == f"True\n{process.SWITCH}\n"
