"""A visit to a namespace always ends at home, and what is named is what is opened."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ztunnel.core.errors import PlatformError
from ztunnel.linux.netns import create_netns, in_netns, name_netns, netns_id, open_netns, unname_netns


@pytest.fixture
def elsewhere(namespaces: None) -> Iterator[int]:
    fd = create_netns()
    yield fd
    os.close(fd)


def test_a_visit_ends_at_home(elsewhere: int) -> None:
    home = netns_id(None)
    with in_netns(elsewhere):
        assert netns_id(None) == netns_id(elsewhere) != home
    assert netns_id(None) == home


def test_a_visit_that_fails_ends_at_home(elsewhere: int) -> None:
    home = netns_id(None)
    with pytest.raises(ZeroDivisionError), in_netns(elsewhere):
        1 / 0  # noqa: B018
    assert netns_id(None) == home


def test_only_the_calling_thread_moves(elsewhere: int) -> None:
    home, there = netns_id(None), threading.Event()
    other: list[tuple[int, int]] = []

    def look() -> None:
        there.wait(5)
        other.append(netns_id(None))

    thread = threading.Thread(target=look)
    thread.start()
    with in_netns(elsewhere):
        there.set()
        thread.join(5)
    assert other == [home]


def test_none_is_where_we_are() -> None:
    home = netns_id(None)
    with in_netns(None):
        assert netns_id(None) == home


def test_a_new_namespace_has_only_a_loopback(elsewhere: int) -> None:
    with in_netns(elsewhere):
        assert [name for _, name in socket.if_nameindex()] == ["lo"]


def test_a_descriptor_that_is_no_namespace_is_refused() -> None:
    with open("/dev/null") as file, pytest.raises(PlatformError, match="cannot enter"), in_netns(file.fileno()):
        pytest.fail("entered /dev/null")


def test_open_by_path(elsewhere: int) -> None:
    fd = open_netns(f"/proc/{os.getpid()}/fd/{elsewhere}")
    try:
        assert netns_id(fd) == netns_id(elsewhere)
    finally:
        os.close(fd)


def test_open_by_name(elsewhere: int) -> None:
    name = f"zt-test-{os.getpid()}"
    name_netns(elsewhere, name)
    try:
        fd = open_netns(name)
        assert netns_id(fd) == netns_id(elsewhere)
        os.close(fd)
        with pytest.raises(PlatformError, match="cannot name"):
            name_netns(elsewhere, name)
    finally:
        unname_netns(name)
    with pytest.raises(PlatformError, match="No such file"):
        open_netns(name)


@pytest.mark.parametrize("name", ["", "a/b", "no-such-namespace", "/no/such/path"])
def test_an_unknown_name_is_refused_with_a_hint(name: str) -> None:
    with pytest.raises(PlatformError) as refused:
        open_netns(name)
    assert "ip netns list" in refused.value.hint


def test_a_plain_file_is_not_a_namespace(tmp_path: Path) -> None:
    (tmp_path / "stale").touch()
    with pytest.raises(PlatformError, match="is not a network namespace"):
        open_netns(str(tmp_path / "stale"))
