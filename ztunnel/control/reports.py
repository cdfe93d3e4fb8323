"""What workers report of traffic, turned into what operators see: metrics and access-log lines."""

from __future__ import annotations

import logging

from ztunnel.core.model.flow import Edge
from ztunnel.link.messages import Counters, EdgeDefined, Flows
from ztunnel.observe import access_log
from ztunnel.observe.metrics import Metrics

log = logging.getLogger(access_log.TARGET)

Report = EdgeDefined | Counters | Flows


class Reports:
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._edges: dict[tuple[int, int], Edge] = {}

    def hear(self, worker: int, report: Report) -> None:
        if isinstance(report, EdgeDefined):
            self._edges[worker, report.number] = report.edge
            self._metrics.define_edge(worker, report.number, report.edge)
        elif isinstance(report, Counters):
            self.count(worker, report)
        else:
            self._metrics.finish(worker, report.flows)
            self._write(worker, report)

    def count(self, worker: int, counters: Counters) -> None:
        self._metrics.count(worker, opened=counters.opened, open_bytes=counters.open_bytes, sockets=counters.sockets)

    def _write(self, worker: int, report: Flows) -> None:
        if not log.isEnabledFor(logging.ERROR):
            return
        for flow in report.flows:
            line = access_log.render(flow, self._edges.get((worker, flow.edge)))
            if log.isEnabledFor(line.level):
                log.log(line.level, line.message, extra={"fields": line.fields})
