"""A loop to test with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ztunnel.worker.engine.loop import Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.shutdown()
