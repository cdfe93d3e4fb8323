"""Logging for tests that run a whole half or the whole agent."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from ztunnel.observe.logs import Logs, install


@pytest.fixture
def logs() -> Iterator[Logs]:
    """Installed, and written to nowhere."""
    fd = os.open(os.devnull, os.O_WRONLY)
    made = install("info", fd=fd)
    yield made
    made.close()
    os.close(fd)
