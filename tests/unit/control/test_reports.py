"""What a worker reports becomes metrics and access-log lines."""

import logging

import pytest

from ztunnel.control.reports import Reports
from ztunnel.core.model.address import Address
from ztunnel.core.model.connection import Direction
from ztunnel.core.model.flow import Edge, Flow, Party
from ztunnel.link.messages import Counters, EdgeDefined, Flows
from ztunnel.observe.metrics import Metrics

EDGE = Edge(
    direction=Direction.OUTBOUND, source=Party(name="a", workload="a"), destination=Party(name="b", workload="b")
)
FLOW = Flow(
    id=1,
    edge=7,
    direction=Direction.OUTBOUND,
    source=Address("10.0.0.1", 1),
    destination=Address("10.0.0.2", 2),
    started=0.0,
    duration=0.5,
    bytes_sent=3,
    bytes_received=5,
)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(version="test")


def test_a_connection_is_counted_and_logged_with_the_names_of_its_edge(
    metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "access")
    reports = Reports(metrics)
    reports.hear(0, EdgeDefined(7, EDGE))
    reports.hear(0, Counters(opened={7: 1}))
    reports.hear(0, Flows((FLOW,)))
    text = metrics.exposition(as_openmetrics=False).decode()
    assert 'istio_tcp_connections_opened_total{reporter="source",source_workload="a"' in text
    (record,) = caplog.records
    (line,) = record.lines
    assert "connection complete" in line
    assert 'src.workload="a"' in line


def test_the_same_number_of_another_worker_is_another_edge(metrics: Metrics, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "access")
    other = Edge(direction=Direction.OUTBOUND, source=Party(name="x"), destination=Party(name="y"))
    reports = Reports(metrics)
    reports.hear(0, EdgeDefined(7, EDGE))
    reports.hear(1, EdgeDefined(7, other))
    reports.hear(1, Flows((FLOW,)))
    assert 'src.workload="x"' in caplog.records[0].lines[0]


def test_lines_that_nobody_wants_are_counted_all_the_same(metrics: Metrics, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "access")
    reports = Reports(metrics)
    reports.hear(0, EdgeDefined(7, EDGE))
    reports.hear(0, Flows((FLOW, FLOW)))
    assert caplog.records == []
    closed = [
        line
        for line in metrics.exposition(as_openmetrics=False).decode().splitlines()
        if line.startswith("istio_tcp_connections_closed_total{")
    ]
    assert [line.rsplit(" ", 1)[1] for line in closed] == ["2"]
