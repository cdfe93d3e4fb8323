"""Demos are found by their directory, only their own user's, and what a dead one left is removed."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import msgspec
import pytest

from ztunnel.cli.demo import running
from ztunnel.core.errors import ConfigError


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def rewrite(place: Path, **changes: object) -> None:
    record = msgspec.json.decode((place / "running.json").read_bytes())
    (place / "running.json").write_bytes(msgspec.json.encode(record | changes))


def test_a_demo_is_found_with_its_places(temporary: Path) -> None:
    directory = running.make_directory()
    running.write(directory, rootless=True, places={"client": "/proc/1/fd/3"})
    (found,) = running.find()
    assert (found.pid, found.rootless, found.places) == (os.getpid(), True, {"client": "/proc/1/fd/3"})
    assert directory.stat().st_mode & 0o077 == 0, "only the owner may look inside"


def test_a_dead_demo_is_not_found_and_swept(temporary: Path) -> None:
    alive, dead = running.make_directory(), running.make_directory()
    rewrite(dead, started="1")  # the pid now belongs to a later process
    assert [found.directory for found in running.find()] == [str(alive)]
    running.sweep()
    assert list(temporary.iterdir()) == [alive]


def test_what_is_not_a_demos_is_left_alone(temporary: Path) -> None:
    elsewhere = temporary / "precious"
    elsewhere.mkdir()
    lying = running.make_directory()
    rewrite(lying, started="1", directory=str(elsewhere))
    other_pids = running.make_directory()
    rewrite(other_pids, started="1", pid_namespace="pid:[1]")
    broken = temporary / f"{running.PREFIX}broken"
    broken.mkdir()
    running.sweep()
    assert sorted(temporary.iterdir()) == sorted([elsewhere, lying, other_pids, broken])
    assert running.find() == []


def test_without_a_demo_there_is_nothing_to_enter(temporary: Path) -> None:
    with pytest.raises(ConfigError, match="no demo of this user is running"):
        running.enter("client")


def test_a_place_that_does_not_exist_is_answered_with_those_that_do(temporary: Path) -> None:
    running.write(running.make_directory(), rootless=False, places={"client": "x", "node1": "y"})
    with pytest.raises(ConfigError, match="no pod or node 'moon'") as raised:
        running.enter("moon")
    assert "client, node1" in raised.value.hint
