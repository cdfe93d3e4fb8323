"""Lines written for many connections at once are those that one record each would give."""

from __future__ import annotations

import logging

from hypothesis import given
from hypothesis import strategies as st

from ztunnel.core.model.address import Address
from ztunnel.core.model.connection import Direction
from ztunnel.core.model.flow import Edge, Flow, Party
from ztunnel.observe import access_log
from ztunnel.observe.access_lines import AccessLines, EdgeText
from ztunnel.observe.log_format import PlainFormatter

words = st.text(max_size=12)
parties = st.builds(Party, name=words, namespace=words, identity=words, cluster=words)
edges = st.builds(
    Edge,
    direction=st.sampled_from(Direction),
    source=parties,
    destination=parties,
    service_hostname=words,
    mutual_tls=st.booleans(),
)
flows = st.builds(
    Flow,
    id=st.just(1),
    edge=st.just(0),
    direction=st.sampled_from(Direction),
    source=st.just(Address("10.0.0.1", 4000)),
    destination=st.sampled_from([None, Address("10.0.0.2", 15008), Address("fd00::2", 80)]),
    hbone_address=words,
    started=st.floats(1e9, 2e9),
    duration=st.floats(0, 1e5),
    bytes_sent=st.integers(0, 2**40),
    bytes_received=st.integers(0, 2**40),
    error=words,
    why=words,
)


def one_record_each(flow: Flow, edge: Edge | None) -> str:
    level, message, fields = access_log.render(flow, edge)
    record = logging.makeLogRecord({"name": "access", "levelno": level, "msg": message, "fields": fields})
    return PlainFormatter().format(record)


@given(flows=st.lists(flows, min_size=2, max_size=4), edge=edges)
def test_a_line_owes_nothing_to_the_one_before(flows: list[Flow], edge: Edge) -> None:
    lines, text = AccessLines(), EdgeText(edge)
    for flow in (*flows, flows[0]):
        assert lines.line(flow, text) == AccessLines().line(flow, EdgeText(edge))


@given(flow=flows, edge=st.none() | edges)
def test_a_line_is_the_same_but_for_its_time(flow: Flow, edge: Edge | None) -> None:
    lines = AccessLines()
    line = lines.early_deny(flow) if edge is None else lines.line(flow, EdgeText(edge))
    assert line.split("\t", 1)[1] == one_record_each(flow, edge).split("\t", 1)[1]


def test_the_time_is_that_of_the_connections_end() -> None:
    flow = Flow(
        id=1,
        edge=-1,
        direction=Direction.INBOUND,
        source=Address("10.0.0.1", 4000),
        destination=None,
        started=1_700_000_000.25,
        duration=1.5,
    )
    assert AccessLines().early_deny(flow).startswith("2023-11-14T22:13:21.750000Z\twarn\taccess\tconnection failed\t")
