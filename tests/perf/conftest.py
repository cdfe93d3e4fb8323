"""Instructions are counted by valgrind, or not at all."""

from __future__ import annotations

import shutil

import pytest


@pytest.fixture(scope="session")
def valgrind() -> None:
    if shutil.which("valgrind") is None:
        pytest.skip("valgrind is missing; install it (apt-get install valgrind), or let `./dev test` do it as root")
