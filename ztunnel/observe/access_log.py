"""One access-log line per connection, with ztunnel's field names and order.

`why`, the reason of the decision, is ours and comes last, so that ztunnel's fields keep their places.
`render` is pure; `write` gives its line to the logger, and costs next to nothing where the line is not wanted.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import NamedTuple

from ztunnel.core.model.flow import Edge, Flow, Party
from ztunnel.observe.log_format import Bare

TARGET = "access"
"""The logger's name, as operators filter it (`error,access=info`)."""


_log = logging.getLogger(TARGET)


class AccessLine(NamedTuple):
    """`logger.log(level, message, extra={"fields": fields})` is the whole of writing it."""

    level: int
    message: str
    fields: Mapping[str, object]


def write(flow: Flow, edge: Edge | None) -> None:
    """Log the connection, if lines of its level are wanted."""
    if _log.isEnabledFor(_level(flow, edge)):
        level, message, fields = render(flow, edge)
        _log.log(level, message, extra={"fields": fields})


def render(flow: Flow, edge: Edge | None) -> AccessLine:
    """The line of a finished connection; `edge` is None for one refused before its parties were known."""
    if edge is None:
        return AccessLine(_level(flow, edge), "connection failed", _early_deny(flow))
    fields: dict[str, object] = {"src.addr": flow.source}
    _add_party(fields, "src", edge.source, edge.mutual_tls)
    if flow.destination is not None:
        fields["dst.addr"] = flow.destination
    if flow.hbone_address:
        fields["dst.hbone_addr"] = Bare(flow.hbone_address)
    if edge.service_hostname:
        fields["dst.service"] = edge.service_hostname
    _add_party(fields, "dst", edge.destination, edge.mutual_tls)
    fields["direction"] = flow.direction.value
    fields["bytes_sent"] = flow.bytes_sent
    fields["bytes_recv"] = flow.bytes_received
    fields["duration"] = f"{int(flow.duration * 1000)}ms"
    _add_outcome(fields, flow)
    return AccessLine(_level(flow, edge), "connection complete", fields)


def _level(flow: Flow, edge: Edge | None) -> int:
    if edge is None:
        return logging.WARNING
    return logging.ERROR if flow.error else logging.INFO


def _early_deny(flow: Flow) -> dict[str, object]:
    fields: dict[str, object] = {"src.addr": flow.source}
    if flow.destination is not None:
        fields["dst.addr"] = flow.destination
    fields["direction"] = flow.direction.value
    _add_outcome(fields, flow)
    return fields


def _add_party(fields: dict[str, object], side: str, party: Party, mutual_tls: bool) -> None:
    """Unknown values are absent; an identity counts only where mutual TLS proved it."""
    if party.name:
        fields[f"{side}.workload"] = party.name
    if party.namespace:
        fields[f"{side}.namespace"] = party.namespace
    if mutual_tls and party.identity:
        fields[f"{side}.identity"] = party.identity
    if party.cluster:
        fields[f"{side}.cluster"] = party.cluster


def _add_outcome(fields: dict[str, object], flow: Flow) -> None:
    if flow.error:
        fields["error"] = flow.error
    if flow.why:
        fields["why"] = flow.why
