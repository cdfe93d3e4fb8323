"""Who talks to whom, as telemetry names it: from what is known of a connection to its Edge.

Unknown stays empty here; metrics print `unknown`, the access log leaves the field out.
"""

from __future__ import annotations

from ztunnel.core.model.connection import Direction
from ztunnel.core.model.flow import Edge, Party
from ztunnel.core.model.identity import Identity
from ztunnel.core.model.service import Service
from ztunnel.core.model.workload import Workload


def edge(
    direction: Direction,
    *,
    source: Workload | None,
    destination: Workload | None,
    service: Service | None = None,
    mutual_tls: bool = False,
    peer: Identity | None = None,
) -> Edge:
    """The edge of a connection.

    `source` is the pod itself (outbound) or the workload known at the peer's address (inbound); `peer` the
    identity that the client's certificate proved (inbound with mutual TLS; outbound it is the pod's own).
    `destination` is the next hop's workload, also when that is a waypoint; `service` the one originally addressed.
    """
    proven = peer or (source.identity if source and direction is Direction.OUTBOUND else None)
    return Edge(
        direction=direction,
        source=_party(source, proven if mutual_tls else None),
        destination=_party(destination, destination.identity if destination else None),
        service_hostname=service.hostname if service else "",
        service_name=service.name if service else "",
        service_namespace=service.namespace if service else "",
        mutual_tls=mutual_tls,
    )


def _party(workload: Workload | None, identity: Identity | None) -> Party:
    uri = str(identity) if identity else ""
    if workload is None:
        return Party(namespace=identity.namespace if identity else "", identity=uri)
    return Party(
        name=workload.name,
        workload=workload.workload_name,
        namespace=workload.namespace,
        identity=uri,
        canonical_name=workload.canonical_name,
        canonical_revision=workload.canonical_revision,
        cluster=workload.cluster_id,
        region=workload.locality.region,
        zone=workload.locality.zone,
    )
