"""What was worked out from the mesh once, and stays true until the mesh changes.

Connections repeat: the same pod talks to the same address again and again. A memo saves the work, and the memory of
equal values that many open connections would otherwise hold each for itself.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

from ztunnel.worker.state.store import Store

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

MAX_KNOWN = 16_384


class Memo(Generic[K, V]):
    """Forgets everything when the store's revision changes, or when it holds MAX_KNOWN entries."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._revision = -1
        self._known: dict[K, V] = {}

    def get(self, key: K) -> V | None:
        if self._revision != self._store.revision:
            self._revision = self._store.revision
            self._known.clear()
        return self._known.get(key)

    def keep(self, key: K, value: V) -> V:
        """The value to use from now on: the one that was kept before, if there is one. Call `get` first."""
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        return self._known.setdefault(key, value)
