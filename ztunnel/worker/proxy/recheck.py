"""Open connections are authorized again when the mesh changes; those now denied are closed.

A change of policies, or of a workload (its list of policies), can touch any inbound connection. They are looked at in
slices, so that thousands of open connections do not delay the bytes of any.
"""

from __future__ import annotations

from ztunnel.link.messages import StateSlice
from ztunnel.worker.proxy.connections import Carried
from ztunnel.worker.proxy.kit import Kit

SLICE = 16
"""Connections looked at per turn of the loop: about 0.2 ms with a few policies."""


class Recheck:
    def __init__(self, kit: Kit) -> None:
        self._kit = kit
        self._left: list[Carried] = []
        self._pending = False

    def changed(self, change: StateSlice) -> None:
        """A slice was applied; after the last one of a change everything is looked at again."""
        if change.policies or change.removed_policies or change.workloads or change.removed_workloads:
            self._pending = True
        if self._pending and change.last:
            self._pending = False
            if not self._left:
                self._kit.loop.call_soon(self._slice)
            self._left = [each for each in self._kit.connections.snapshot() if each.terms.authorized]

    def _slice(self) -> None:
        for _ in range(min(SLICE, len(self._left))):
            self._look(self._left.pop())
        if self._left:
            self._kit.loop.call_soon(self._slice)

    def _look(self, carried: Carried) -> None:
        workload, authorized = carried.pod.workload(), carried.authorized
        if carried.ended_already or authorized is None or workload is None:
            return
        verdict = self._kit.authorizer.look(workload, authorized)
        if not verdict.allowed:
            carried.abort(f"connection closed due to policy change: {verdict.why}", "DENY")
