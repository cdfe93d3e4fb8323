"""A rehearsal plays a whole connection within the process, and nobody depends on it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
from functools import partial

import pytest
from mesh_pki import CLIENT, WEB, MeshPki
from path_mesh import SETTINGS

from ztunnel.link.channel import memory_link
from ztunnel.worker import main
from ztunnel.worker.engine.agreement import Settings
from ztunnel.worker.engine.driver import host
from ztunnel.worker.engine.loop import Loop
from ztunnel.worker.proxy import rehearsal as module
from ztunnel.worker.proxy.certificates import Credentials
from ztunnel.worker.proxy.rehearsal import TAKES, Rehearsal


@pytest.fixture
def credentials() -> Credentials:
    return Credentials(MeshPki().leaf(WEB))


def play(loop: Loop, rehearsal: Rehearsal) -> None:
    rehearsal.begin()
    while not rehearsal.over:
        loop.turn(0.05)
    loop.turn(0)


def open_files() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_every_take_is_played_to_its_end_and_nothing_is_left(
    loop: Loop, credentials: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BUDGET", 60.0)
    before = open_files()
    rehearsal = Rehearsal(loop, credentials, Settings())
    play(loop, rehearsal)
    assert rehearsal.takes == TAKES
    assert open_files() == before


def test_on_a_slow_machine_one_take_has_to_do(
    loop: Loop, credentials: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BUDGET", 0.0)
    rehearsal = Rehearsal(loop, credentials, Settings())
    play(loop, rehearsal)
    assert rehearsal.takes == 1


def test_it_touches_no_network(loop: Loop, credentials: Credentials) -> None:
    families = set()

    def pair() -> tuple[socket.socket, socket.socket]:
        made = socket.socketpair()
        families.add(made[0].family)
        return made

    play(loop, Rehearsal(loop, credentials, Settings(), pair))
    assert families == {socket.AF_UNIX}


def test_without_sockets_it_is_over_at_once(loop: Loop, credentials: Credentials) -> None:
    def none() -> tuple[socket.socket, socket.socket]:
        raise OSError(24, "Too many open files")

    rehearsal = Rehearsal(loop, credentials, Settings(), none)
    rehearsal.begin()
    assert rehearsal.over


def test_a_handshake_that_fails_ends_it_and_leaves_nothing(loop: Loop) -> None:
    before = open_files()
    rehearsal = Rehearsal(loop, Credentials(MeshPki().expired(WEB)), Settings())
    play(loop, rehearsal)
    assert rehearsal.takes == 0
    assert open_files() == before


def test_a_worker_that_stops_in_the_middle_leaves_nothing(loop: Loop, credentials: Credentials) -> None:
    before = open_files()
    rehearsal = Rehearsal(loop, credentials, Settings())
    rehearsal.begin()
    loop.turn(0)
    rehearsal.end()
    rehearsal.end()
    loop.turn(0)
    assert open_files() == before


def test_the_next_connection_imports_nothing() -> None:
    """In an interpreter of its own, which has imported what a worker imports and no more."""
    script = """
        import sys
        import ztunnel.worker.main
        from mesh_pki import WEB, MeshPki
        from ztunnel.worker.engine.agreement import Settings
        from ztunnel.worker.engine.loop import Loop
        from ztunnel.worker.proxy.certificates import Credentials
        from ztunnel.worker.proxy.rehearsal import Rehearsal

        loop, credentials = Loop(), Credentials(MeshPki().leaf(WEB))
        for _ in range(2):
            before = set(sys.modules)
            rehearsal = Rehearsal(loop, credentials, Settings())
            rehearsal.begin()
            while not rehearsal.over:
                loop.turn(1)
        print(*sys.modules.keys() - before)
        loop.shutdown()
    """
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == []


def test_an_agents_worker_rehearses_with_its_first_certificate_and_not_again(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []

    def begin(self: Rehearsal) -> None:
        begun.append(self._credentials.issued.identity)

    monkeypatch.setattr(Rehearsal, "begin", begin)
    pki, loop = MeshPki(), Loop()
    control, link = memory_link()
    for issued in (pki.expired(CLIENT), pki.leaf(CLIENT), pki.leaf(WEB), pki.leaf(CLIENT)):
        control.send(issued)
    control.close()
    host(loop, partial(main.run, link, SETTINGS, loop))
    assert begun == [CLIENT]
