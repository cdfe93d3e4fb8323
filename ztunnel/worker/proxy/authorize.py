"""Whether a connection to a pod of ours may pass, by the policies in force.

A verdict depends on who, from which address, to where; it is worked out once for each of these and remembered until
the mesh changes. What policies on trial (dry run) would have done is logged, never enforced.
"""

from __future__ import annotations

import logging

from ztunnel.core.decide import rbac
from ztunnel.core.model.connection import Connection, Verdict
from ztunnel.core.model.workload import Workload
from ztunnel.worker.proxy.memo import Memo
from ztunnel.worker.state.store import Store

log = logging.getLogger("ztunnel.worker.proxy.authorize")


class Authorizer:
    """`level` is that of the decision log (AUTHZ_POLICY_INFO_LOGGING raises it from debug to info)."""

    def __init__(self, store: Store, level: int) -> None:
        self._store = store
        self._level = level
        self._verdicts: Memo[tuple[object, ...], Verdict] = Memo(store)

    def check(self, own: Workload, connection: Connection) -> Verdict:
        """The verdict on a new connection to `own`; logged."""
        verdict = self.look(own, connection)
        if log.isEnabledFor(self._level):
            self._tell(own, connection, verdict)
        return verdict

    def look(self, own: Workload, connection: Connection) -> Verdict:
        """The same, for one that is open already; not logged."""
        key = (own.uid, connection.identity, connection.source.ip, connection.destination)
        known = self._verdicts.get(key)
        if known is None:
            known = self._verdicts.keep(key, rbac.evaluate(*self._store.compiled_for(own), connection))
        return known

    def _tell(self, own: Workload, connection: Connection, verdict: Verdict) -> None:
        fields = {
            "src.addr": connection.source,
            "src.identity": str(connection.identity or ""),
            "dst.addr": connection.destination,
            "dst.workload": f"{own.namespace}/{own.name}",
            "why": verdict.why,
        }
        log.log(self._level, "%s", "allowed" if verdict.allowed else "denied", extra={"fields": fields})
        for note in verdict.dry_run:
            log.log(self._level, "%s", note, extra={"fields": fields})
