"""Metrics of the agent, under Istio's names, so that Kiali and the stock dashboards work.

Traffic is counted per series, where a series is one set of Istio's labels: many edges of many workers share one. An
update costs a dict access and some additions; labels are made into text once, when an edge is first told.

Bytes of open connections move while they are open. A worker tells two things: totals of finished connections, and
now and then what its open ones carried so far. Each (worker, edge) has a high-water mark of what was already counted;
whatever lies above it is new. Nothing is counted twice and no counter ever falls, in whichever order both arrive.

The text of a series' labels is made once, not at each scrape: 1000 edges are 5000 samples of 27 labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from ztunnel.core.model.connection import Direction
from ztunnel.core.model.flow import Edge, Flow, Party
from ztunnel.observe import process
from ztunnel.observe.exposition import END, Family, Number, counter, escape, gauge, header, label_text, written

_REPORTERS = {Direction.OUTBOUND: "source", Direction.INBOUND: "destination"}
_REPORTER_OF_VALUE = {direction.value: reporter for direction, reporter in _REPORTERS.items()}

Gauges = Callable[[], Mapping[str, Number]]


class _Series:
    """The counters of one set of labels."""

    __slots__ = ("closed", "labels", "opened", "received", "sent")

    def __init__(self, labels: tuple[str, str]) -> None:
        self.labels = labels
        """Label text before and after the response flag."""
        self.opened = 0
        self.closed: dict[str, int] = {}
        self.received = 0
        self.sent = 0

    def labelled(self, flag: str) -> str:
        return f"{self.labels[0]}{escape(flag)}{self.labels[1]}"


_FAMILIES: tuple[tuple[str, str, Callable[[_Series], Iterable[tuple[str, int]]]], ...] = (
    ("istio_tcp_connections_opened", "Connections that began.", lambda series: [("-", series.opened)]),
    ("istio_tcp_connections_closed", "Connections that ended, well or not.", lambda series: series.closed.items()),
    (
        "istio_tcp_connections_failed",
        "Connections that ended with a response flag.",
        lambda series: [(flag, number) for flag, number in series.closed.items() if flag != "-"],
    ),
    ("istio_tcp_received_bytes", "Bytes from the requesting side.", lambda series: [("-", series.received)]),
    ("istio_tcp_sent_bytes", "Bytes to the requesting side.", lambda series: [("-", series.sent)]),
)
"""Name, help, and what of a series the samples are: (response flag, value)."""


class _Tally:
    """What one worker told about one edge; sent and received as the worker sees them."""

    __slots__ = ("finished_received", "finished_sent", "outbound", "seen_received", "seen_sent", "series")

    def __init__(self, series: _Series, outbound: bool) -> None:
        self.series = series
        self.outbound = outbound
        self.finished_sent = 0
        self.finished_received = 0
        self.seen_sent = 0
        self.seen_received = 0

    def saw(self, sent: int, received: int) -> None:
        """The edge's bytes are known to be at least these; adds what is new to the series.

        A worker's "sent" goes towards the destination when outbound and back to the client when inbound; the metrics
        are always seen from the requesting side.
        """
        more_sent = max(sent - self.seen_sent, 0)
        more_received = max(received - self.seen_received, 0)
        self.seen_sent += more_sent
        self.seen_received += more_received
        if self.outbound:
            more_sent, more_received = more_received, more_sent
        self.series.sent += more_sent
        self.series.received += more_received


class Metrics:
    """All counters of one agent. Updated by the control half from its workers' messages, read at a scrape."""

    def __init__(self, *, version: str, component: str = "ztunnel") -> None:
        self._series: dict[tuple[str, str], _Series] = {}
        self._tallies: dict[tuple[int, int], _Tally] = {}
        self._sockets: dict[int, Mapping[str, int]] = {}
        self._refused: dict[tuple[str, str], int] = {}
        self._gauges: list[Gauges] = []
        self._counters: list[Gauges] = []
        self._build = {"component": component, "tag": version}

    def define_edge(self, worker: int, number: int, edge: Edge) -> None:
        """The worker will speak of `edge` by this number."""
        labels = _labels(edge)
        series = self._series.get(labels)
        if series is None:
            series = self._series[labels] = _Series(labels)
        self._tallies[worker, number] = _Tally(series, edge.direction is Direction.OUTBOUND)

    def count(
        self,
        worker: int,
        *,
        opened: Mapping[int, int],
        open_bytes: Mapping[int, tuple[int, int]],
        sockets: Mapping[str, int],
    ) -> None:
        """A worker's Counters message."""
        for number, connections in opened.items():
            self._tallies[worker, number].series.opened += connections
        for number, (sent, received) in open_bytes.items():
            tally = self._tallies[worker, number]
            tally.saw(tally.finished_sent + sent, tally.finished_received + received)
        self._sockets[worker] = sockets

    def finish(self, worker: int, flows: Iterable[Flow]) -> None:
        """Connections that ended, or were refused before their parties were known (edge -1)."""
        for flow in flows:
            if flow.edge < 0:
                key = (_REPORTERS[flow.direction], flow.flag)
                self._refused[key] = self._refused.get(key, 0) + 1
                continue
            tally = self._tallies[worker, flow.edge]
            tally.finished_sent += flow.bytes_sent
            tally.finished_received += flow.bytes_received
            tally.saw(tally.finished_sent, tally.finished_received)
            closed = tally.series.closed
            closed[flow.flag] = closed.get(flow.flag, 0) + 1

    def forget_worker(self, worker: int) -> None:
        """The worker is gone: its open sockets with it, its counts stay."""
        self._sockets.pop(worker, None)
        for key in [key for key in self._tallies if key[0] == worker]:
            del self._tallies[key]

    def add_gauges(self, read: Gauges) -> None:
        """Have `read` called at each scrape; the keys are names without the prefix `ztunnel_py_`."""
        self._gauges.append(read)

    def add_counters(self, read: Gauges) -> None:
        """As `add_gauges`, for numbers that only rise; names without `_total`."""
        self._counters.append(read)

    def exposition(self, *, as_openmetrics: bool) -> bytes:
        """Every sample, as OpenMetrics 1.0 or as the older Prometheus text 0.0.4."""
        pieces = [*self._traffic(as_openmetrics)]
        for family in (*self._others(), *process.families()):
            pieces.extend(written(family, as_openmetrics=as_openmetrics))
        if as_openmetrics:
            pieces.append(END)
        return "".join(pieces).encode()

    def _others(self) -> Iterator[Family]:
        """Everything but traffic."""
        yield Family("istio_build", "Istio component build info", [(self._build, 1)])
        yield Family(
            "istio_tcp_sockets_open",
            "Accepted sockets open now.",
            [
                ({"reporter": reporter}, sum(told.get(value, 0) for told in self._sockets.values()))
                for value, reporter in _REPORTER_OF_VALUE.items()
            ],
        )
        yield Family(
            "ztunnel_py_connections_refused",
            "Connections refused before their parties were known.",
            [
                ({"reporter": reporter, "response_flags": flag}, times)
                for (reporter, flag), times in sorted(self._refused.items())
            ],
            is_counter=True,
        )
        for name, number in _merged(self._gauges).items():
            yield gauge(f"ztunnel_py_{name}", name.replace("_", " "), number)
        for name, number in _merged(self._counters).items():
            yield counter(f"ztunnel_py_{name}", name.replace("_", " "), number)

    def _traffic(self, as_openmetrics: bool) -> Iterator[str]:
        for name, text, read in _FAMILIES:
            samples = [
                f"{name}_total{{{series.labelled(flag)}}} {value}\n"
                for series in self._series.values()
                for flag, value in read(series)
            ]
            if samples:
                yield header(name, text, is_counter=True, as_openmetrics=as_openmetrics)
                yield from samples


def _merged(sources: Iterable[Gauges]) -> dict[str, Number]:
    merged: dict[str, Number] = {}
    for read in sources:
        merged.update(read())
    return merged


def _labels(edge: Edge) -> tuple[str, str]:
    """Istio's labels in Istio's order, split around the value of response_flags."""
    before = {
        "reporter": _REPORTERS[edge.direction],
        **_party_labels("source", edge.source, edge.source.identity if edge.mutual_tls else ""),
        "destination_service": edge.service_hostname,
        "destination_service_namespace": edge.service_namespace,
        "destination_service_name": edge.service_name,
        **_party_labels("destination", edge.destination, edge.destination.identity),
        "request_protocol": "tcp",
    }
    after = {"connection_security_policy": "mutual_tls" if edge.mutual_tls else ""}
    if edge.source.workload or edge.destination.workload:
        after["source_region"] = edge.source.region
        after["source_zone"] = edge.source.zone
        after["destination_region"] = edge.destination.region
        after["destination_zone"] = edge.destination.zone
    return f'{_text(before)},response_flags="', f'",{_text(after)}'


def _party_labels(side: str, party: Party, principal: str) -> dict[str, str]:
    return {
        f"{side}_workload": party.workload,
        f"{side}_canonical_service": party.canonical_name,
        f"{side}_canonical_revision": party.canonical_revision,
        f"{side}_workload_namespace": party.namespace,
        f"{side}_principal": principal,
        f"{side}_app": party.canonical_name,
        f"{side}_version": party.canonical_revision,
        f"{side}_cluster": party.cluster,
    }


def _text(labels: Mapping[str, str]) -> str:
    return label_text({name: value or "unknown" for name, value in labels.items()})
