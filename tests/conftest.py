"""What every test gets: root rights where the system allows it, a network when asked for, and the leak check."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import hypothesis
import pytest
from netns_builder import Leftovers, Topology, become_root, in_user_namespace

from ztunnel.core.errors import PlatformError
from ztunnel.linux.netns import create_netns
from ztunnel.linux.rights import raise_open_files

raise_open_files()  # hundreds of connections have both ends, and both agents, in this one process
hypothesis.settings.register_profile("same every time", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("same every time")

_WHY_NOT_ROOT = become_root()
"""Done while the process has one thread: only then may it enter a user namespace."""


@pytest.fixture
def topology() -> Iterator[Topology]:
    """An empty network; skips, saying why, where namespaces cannot be made at all."""
    _need_namespaces()
    with Topology() as network:
        yield network


@pytest.fixture(scope="session")
def namespaces() -> None:
    """For tests that build their own network."""
    _need_namespaces()


def _need_namespaces() -> None:
    if _WHY_NOT_ROOT:
        pytest.skip(f"needs namespaces: {_WHY_NOT_ROOT}")
    try:
        os.close(create_netns())
    except PlatformError as error:
        pytest.skip(f"needs namespaces: {error}; {error.hint}")


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that leaves a descriptor, a link, a namespace's name or a child process."""
    if request.node.get_closest_marker("root") and (_WHY_NOT_ROOT or in_user_namespace()):
        pytest.skip("needs real root, not only a user namespace")
    before = Leftovers()
    yield
    if before.found():
        gc.collect()
        left = before.found()
        assert not left, f"left behind: {', '.join(left)}"
