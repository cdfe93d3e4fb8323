"""Metrics have Istio's names and labels, count nothing twice and never fall."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from ztunnel.core.model.address import Address
from ztunnel.core.model.connection import Direction
from ztunnel.core.model.flow import Edge, Flow, Party
from ztunnel.observe.metrics import Metrics

CLIENT = Party(
    name="client-1",
    workload="client",
    namespace="a",
    identity="spiffe://td/ns/a/sa/client",
    canonical_name="client-app",
    canonical_revision="v1",
    cluster="c1",
    region="r1",
    zone="z1",
)
SERVER = Party(name="server-1", workload="server", namespace="b", identity="spiffe://td/ns/b/sa/server")
OUT = Edge(direction=Direction.OUTBOUND, source=CLIENT, destination=SERVER, service_hostname="s.b.svc", mutual_tls=True)
IN = Edge(direction=Direction.INBOUND, source=CLIENT, destination=SERVER, mutual_tls=True)


def flow(
    edge: int, sent: int = 0, received: int = 0, flag: str = "-", direction: Direction = Direction.OUTBOUND
) -> Flow:
    return Flow(
        id=1,
        edge=edge,
        direction=direction,
        source=Address("10.0.0.1", 1),
        destination=None,
        started=0.0,
        duration=0.0,
        bytes_sent=sent,
        bytes_received=received,
        flag=flag,
    )


@pytest.fixture
def metrics() -> Metrics:
    made = Metrics(version="1.2.3")
    made.define_edge(0, 1, OUT)
    made.define_edge(0, 2, IN)
    return made


def families(metrics: Metrics) -> Iterator[Metric]:
    return parse_openmetrics(metrics.exposition(as_openmetrics=True).decode())


def values(metrics: Metrics, sample: str, **labels: str) -> list[float]:
    """The values of all samples of this name that have these labels."""
    return [
        found.value
        for family in families(metrics)
        for found in family.samples
        if found.name == sample and labels.items() <= found.labels.items()
    ]


def open_bytes(metrics: Metrics, edge: int, sent: int, received: int) -> None:
    metrics.count(0, opened={}, open_bytes={edge: (sent, received)}, sockets={})


def test_labels_have_istios_names_and_order(metrics: Metrics) -> None:
    metrics.count(0, opened={1: 1}, open_bytes={}, sockets={})
    text = metrics.exposition(as_openmetrics=True).decode()
    line = next(line for line in text.splitlines() if line.startswith("istio_tcp_connections_opened_total"))
    assert line == (
        'istio_tcp_connections_opened_total{reporter="source",source_workload="client",'
        'source_canonical_service="client-app",source_canonical_revision="v1",source_workload_namespace="a",'
        'source_principal="spiffe://td/ns/a/sa/client",source_app="client-app",source_version="v1",source_cluster="c1",'
        'destination_service="s.b.svc",destination_service_namespace="unknown",destination_service_name="unknown",'
        'destination_workload="server",destination_canonical_service="unknown",destination_canonical_revision="unknown",'
        'destination_workload_namespace="b",destination_principal="spiffe://td/ns/b/sa/server",'
        'destination_app="unknown",destination_version="unknown",destination_cluster="unknown",request_protocol="tcp",'
        'response_flags="-",connection_security_policy="mutual_tls",source_region="r1",source_zone="z1",'
        'destination_region="unknown",destination_zone="unknown"} 1'
    )


def test_localities_are_absent_when_no_workload_is_known() -> None:
    metrics = Metrics(version="1")
    metrics.define_edge(0, 1, Edge(direction=Direction.INBOUND, source=Party(), destination=Party()))
    metrics.finish(0, [flow(1)])
    family = next(family for family in families(metrics) if family.name == "istio_tcp_connections_closed")
    labels = family.samples[0].labels
    assert "source_region" not in labels
    assert labels["source_principal"] == labels["connection_security_policy"] == "unknown"


def test_the_principal_of_a_source_without_mutual_tls_is_unknown() -> None:
    metrics = Metrics(version="1")
    metrics.define_edge(0, 1, Edge(direction=Direction.OUTBOUND, source=CLIENT, destination=SERVER))
    metrics.finish(0, [flow(1)])
    assert values(
        metrics,
        "istio_tcp_connections_closed_total",
        source_principal="unknown",
        destination_principal=SERVER.identity,
    ) == [1]


def test_both_reporters_count_bytes_as_the_requesting_side_sees_them(metrics: Metrics) -> None:
    metrics.finish(0, [flow(1, sent=100, received=7), flow(2, sent=7, received=100, direction=Direction.INBOUND)])
    for reporter in ("source", "destination"):
        assert values(metrics, "istio_tcp_received_bytes_total", reporter=reporter) == [100]
        assert values(metrics, "istio_tcp_sent_bytes_total", reporter=reporter) == [7]


def test_a_flag_makes_a_failed_connection_and_a_closed_one(metrics: Metrics) -> None:
    metrics.finish(0, [flow(1), flow(1), flow(1, flag="DENY")])
    assert values(metrics, "istio_tcp_connections_closed_total", response_flags="-") == [2]
    assert values(metrics, "istio_tcp_connections_closed_total", response_flags="DENY") == [1]
    assert values(metrics, "istio_tcp_connections_failed_total") == [1]


def test_bytes_of_open_connections_move_and_are_not_counted_again_at_the_end(metrics: Metrics) -> None:
    open_bytes(metrics, 1, 10, 1)
    open_bytes(metrics, 1, 60, 2)
    assert values(metrics, "istio_tcp_received_bytes_total", reporter="source") == [60]
    metrics.finish(0, [flow(1, sent=100, received=3)])
    assert values(metrics, "istio_tcp_received_bytes_total", reporter="source") == [100]
    open_bytes(metrics, 1, 5, 0)
    assert values(metrics, "istio_tcp_received_bytes_total", reporter="source") == [105]


@given(st.lists(st.tuples(st.sampled_from(["open", "grow", "close", "tell"]), st.integers(0, 1000)), max_size=40))
def test_byte_counters_never_fall_and_are_exact_when_told(steps: list[tuple[str, int]]) -> None:
    metrics = Metrics(version="1")
    metrics.define_edge(0, 1, OUT)
    connections: list[int] = []
    finished = shown = 0
    for step, number in steps:
        if step == "open":
            connections.append(0)
        elif step == "grow" and connections:
            connections[number % len(connections)] += number
        elif step == "close" and connections:
            total = connections.pop(number % len(connections))
            finished += total
            metrics.finish(0, [flow(1, sent=total)])
        elif step == "tell":
            open_bytes(metrics, 1, sum(connections), 0)
        (now,) = values(metrics, "istio_tcp_received_bytes_total")
        assert shown <= now <= finished + sum(connections)
        if step == "tell":
            assert now == finished + sum(connections)
        shown = int(now)


def test_edges_with_the_same_labels_are_one_series_across_workers(metrics: Metrics) -> None:
    metrics.define_edge(1, 1, OUT)
    metrics.count(0, opened={1: 2}, open_bytes={}, sockets={"outbound": 2})
    metrics.count(1, opened={1: 3}, open_bytes={}, sockets={"outbound": 1, "inbound": 4})
    assert values(metrics, "istio_tcp_connections_opened_total", reporter="source") == [5]
    assert values(metrics, "istio_tcp_sockets_open", reporter="source") == [3]
    assert values(metrics, "istio_tcp_sockets_open", reporter="destination") == [4]


def test_a_worker_that_goes_takes_its_sockets_and_leaves_its_counts(metrics: Metrics) -> None:
    metrics.count(0, opened={1: 2}, open_bytes={1: (9, 0)}, sockets={"outbound": 2})
    metrics.forget_worker(0)
    assert values(metrics, "istio_tcp_sockets_open", reporter="source") == [0]
    metrics.define_edge(0, 1, OUT)
    metrics.finish(0, [flow(1, sent=1)])
    assert values(metrics, "istio_tcp_connections_opened_total", reporter="source") == [2]
    assert values(metrics, "istio_tcp_received_bytes_total", reporter="source") == [10]


def test_connections_refused_before_their_parties_were_known_are_counted_apart(metrics: Metrics) -> None:
    metrics.finish(0, [flow(-1, flag="TLS_FAILURE", direction=Direction.INBOUND), flow(-1, flag="CONNECT")])
    assert values(
        metrics, "ztunnel_py_connections_refused_total", reporter="destination", response_flags="TLS_FAILURE"
    ) == [1]
    assert sum(values(metrics, "istio_tcp_connections_closed_total")) == 0


def test_gauges_and_counters_of_other_rooms_are_read_at_the_scrape(metrics: Metrics) -> None:
    pods = {"pods": 1}
    metrics.add_gauges(lambda: pods)
    metrics.add_counters(lambda: {"log_lines_dropped": 3})
    pods["pods"] = 2
    assert values(metrics, "ztunnel_py_pods") == [2]
    assert values(metrics, "ztunnel_py_log_lines_dropped_total") == [3]


def test_build_and_process_metrics_are_there(metrics: Metrics) -> None:
    assert values(metrics, "istio_build", component="ztunnel", tag="1.2.3") == [1]
    assert values(metrics, "process_open_fds")[0] > 0
    assert values(metrics, "process_max_fds")[0] > 0


def test_hostile_label_values_stay_inside_their_quotes() -> None:
    metrics = Metrics(version="1")
    hostile = 'x"} 1\nevil{a="\\'
    metrics.define_edge(0, 1, Edge(direction=Direction.INBOUND, source=Party(workload=hostile), destination=SERVER))
    metrics.finish(0, [flow(1)])
    assert values(metrics, "istio_tcp_connections_closed_total", source_workload=hostile) == [1]
    assert not values(metrics, "evil")


def test_both_text_forms_parse_and_say_the_same(metrics: Metrics) -> None:
    metrics.count(0, opened={1: 2, 2: 1}, open_bytes={}, sockets={})
    metrics.finish(0, [flow(1, 5, 6), flow(2, 7, 8, "DENY", Direction.INBOUND)])
    new = metrics.exposition(as_openmetrics=True).decode()
    old = metrics.exposition(as_openmetrics=False).decode()
    assert new.endswith("# EOF\n")
    assert "# EOF" not in old
    assert "# TYPE istio_tcp_connections_opened_total counter" in old
    assert "# TYPE istio_tcp_connections_opened counter" in new

    def traffic(parsed: Iterator[Metric]) -> list[tuple[str, tuple[tuple[str, str], ...], float]]:
        return sorted(
            (sample.name, tuple(sample.labels.items()), sample.value)
            for family in parsed
            for sample in family.samples
            if sample.name.startswith("istio_tcp_")
        )

    assert traffic(parse_openmetrics(new)) == traffic(parse_text(old))


def test_families_without_samples_are_omitted() -> None:
    assert "istio_tcp_connections_failed" not in Metrics(version="1").exposition(as_openmetrics=True).decode()
