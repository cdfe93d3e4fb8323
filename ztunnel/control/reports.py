"""What workers report of traffic, turned into what operators see: metrics and access-log lines."""

from __future__ import annotations

from ztunnel.link.messages import Counters, EdgeDefined, Flows
from ztunnel.observe import access_log
from ztunnel.observe.access_lines import AccessLines, EdgeText
from ztunnel.observe.log_format import LogFormat
from ztunnel.observe.metrics import Metrics

Report = EdgeDefined | Counters | Flows


class Reports:
    def __init__(self, metrics: Metrics, form: LogFormat = "plain") -> None:
        self._metrics = metrics
        self._plain = AccessLines() if form == "plain" else None
        self._edges: dict[tuple[int, int], EdgeText] = {}

    def hear(self, worker: int, report: Report) -> None:
        if isinstance(report, EdgeDefined):
            self._edges[worker, report.number] = EdgeText(report.edge)
            self._metrics.define_edge(worker, report.number, report.edge)
        elif isinstance(report, Counters):
            self.count(worker, report)
        else:
            self._metrics.finish(worker, report.flows)
            self._write(worker, report)

    def forget(self, worker: int) -> None:
        """The worker is gone: the next one of its number counts anew."""
        self._metrics.forget_worker(worker)
        for key in [key for key in self._edges if key[0] == worker]:
            del self._edges[key]

    def count(self, worker: int, counters: Counters) -> None:
        self._metrics.count(worker, opened=counters.opened, open_bytes=counters.open_bytes, sockets=counters.sockets)

    def _write(self, worker: int, report: Flows) -> None:
        edges = self._edges
        pairs = [(flow, edges.get((worker, flow.edge))) for flow in report.flows]
        if self._plain is not None:
            self._plain.write(pairs)
            return
        for flow, text in pairs:
            access_log.write(flow, text.edge if text is not None else None)
