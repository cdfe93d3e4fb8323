"""Numbers of edges without building the edge again: most connections repeat who talks to whom."""

from __future__ import annotations

from ztunnel.core.decide.edges import edge
from ztunnel.core.model.connection import Direction
from ztunnel.core.model.identity import Identity
from ztunnel.core.model.service import Service
from ztunnel.core.model.workload import Workload
from ztunnel.worker.proxy.kit import Kit
from ztunnel.worker.proxy.memo import Memo

Key = tuple[int, int, int, bool, Identity | None]


class EdgeNumbers:
    """Remembers by object: values of the store are replaced, never changed, and are kept alive here."""

    def __init__(self, kit: Kit) -> None:
        self._kit = kit
        self._known: Memo[Key, tuple[int, object]] = Memo(kit.store)

    def number(
        self,
        direction: Direction,
        *,
        source: Workload | None,
        destination: Workload | None,
        service: Service | None = None,
        mutual_tls: bool = False,
        peer: Identity | None = None,
    ) -> int:
        """The ledger's number for this edge."""
        key = (id(source), id(destination), id(service), mutual_tls, peer)
        known = self._known.get(key)
        if known is None:
            value = edge(
                direction, source=source, destination=destination, service=service, mutual_tls=mutual_tls, peer=peer
            )
            known = self._known.keep(key, (self._kit.ledger.number(value), (source, destination, service)))
        return known[0]
