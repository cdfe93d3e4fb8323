"""Access-log lines have ztunnel's names, order and quoting; `tests/golden/access_log.*` are their exact text."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from ztunnel.core.model.address import Address
from ztunnel.core.model.connection import Direction
from ztunnel.core.model.flow import Edge, Flow, Party
from ztunnel.observe.access_log import TARGET, render, write
from ztunnel.observe.log_format import LogFormat, formatter

GOLDEN = Path(__file__).parents[2] / "golden"

CLIENT = Party(
    name="sleep-7656cf8794-lxcmx",
    workload="sleep",
    namespace="default",
    identity="spiffe://cluster.local/ns/default/sa/sleep",
    cluster="Kubernetes",
)
SERVER = Party(
    name="details-v1-698d88b-krdw7",
    workload="details-v1",
    namespace="bookinfo",
    identity="spiffe://cluster.local/ns/bookinfo/sa/details",
    cluster="Kubernetes",
)
SECURE = Edge(
    direction=Direction.OUTBOUND,
    source=CLIENT,
    destination=SERVER,
    service_hostname="details.bookinfo.svc.cluster.local",
    mutual_tls=True,
)
PLAIN_INBOUND = Edge(direction=Direction.INBOUND, source=Party(), destination=SERVER)
SECURE_INBOUND = Edge(direction=Direction.INBOUND, source=CLIENT, destination=SERVER, mutual_tls=True)


def flow(
    direction: Direction,
    destination: Address | None,
    *,
    edge: int = 1,
    hbone: str = "",
    sent: int = 0,
    received: int = 0,
    flag: str = "-",
    error: str = "",
    why: str = "",
) -> Flow:
    return Flow(
        id=7,
        edge=edge,
        direction=direction,
        source=Address("10.240.7.11", 39494),
        destination=destination,
        hbone_address=hbone,
        started=1_724_255_801.0,
        duration=0.0129,
        bytes_sent=sent,
        bytes_received=received,
        flag=flag,
        error=error,
        why=why,
    )


HBONE = Address("10.240.7.62", 15008)
DENIED = "connection closed due to policy rejection: explicitly denied by: bookinfo/no-sleep"
CASES: list[tuple[Flow, Edge | None]] = [
    (
        flow(Direction.OUTBOUND, HBONE, hbone="10.240.7.62:9080", sent=84, received=162, why="endpoint of service"),
        SECURE,
    ),
    (
        flow(Direction.INBOUND, HBONE, hbone="10.240.7.62:9080", flag="DENY", error=DENIED, why="explicitly denied"),
        SECURE_INBOUND,
    ),
    (flow(Direction.INBOUND, Address("fd00::62", 9080), sent=162, received=84), PLAIN_INBOUND),
    (
        flow(Direction.OUTBOUND, Address("127.0.0.1", 15001), edge=-1, flag="CONNECT", error="loop", why="own port"),
        None,
    ),
    (flow(Direction.INBOUND, None, edge=-1, flag="TLS_FAILURE", error='bad "client"\ncertificate'), None),
]


def line(case: tuple[Flow, Edge | None], form: LogFormat) -> str:
    """What the agent writes, with the time of the write held still."""
    level, message, fields = render(*case)
    record = logging.LogRecord(TARGET, level, "", 0, message, (), None)
    record.created = 1_724_255_801.707
    record.fields = fields
    return formatter(form).format(record)


@pytest.mark.parametrize("form", ["plain", "json"])
def test_lines_are_exactly_the_golden_ones(form: LogFormat) -> None:
    written = "".join(f"{line(case, form)}\n" for case in CASES)
    assert written == (GOLDEN / f"access_log.{form}").read_text()


def test_level_tells_success_failure_and_early_refusal() -> None:
    assert [render(*case).level for case in CASES] == [
        logging.INFO,
        logging.ERROR,
        logging.INFO,
        logging.WARNING,
        logging.WARNING,
    ]


def test_fields_of_a_full_line_are_in_ztunnels_order_and_ours_is_last() -> None:
    failed = flow(Direction.OUTBOUND, HBONE, hbone="10.240.7.62:9080", error="reset", why="endpoint")
    source = ["src.addr", "src.workload", "src.namespace", "src.identity", "src.cluster"]
    destination = ["dst.addr", "dst.hbone_addr", "dst.service", "dst.workload", "dst.namespace", "dst.identity"]
    rest = ["dst.cluster", "direction", "bytes_sent", "bytes_recv", "duration", "error", "why"]
    assert list(render(failed, SECURE).fields) == [*source, *destination, *rest]


def test_identities_are_shown_only_when_mutual_tls_proved_them() -> None:
    unproven = Edge(direction=Direction.OUTBOUND, source=CLIENT, destination=SERVER)
    fields = render(flow(Direction.OUTBOUND, HBONE), unproven).fields
    assert not any(name.endswith(".identity") for name in fields)


def test_written_lines_are_those_rendered_of_the_wanted_levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, TARGET)
    for case in CASES:
        write(*case)
    wanted = [render(*case) for case in CASES if render(*case).level >= logging.WARNING]
    assert [
        (record.name, record.levelno, record.getMessage(), vars(record)["fields"]) for record in caplog.records
    ] == [(TARGET, *line) for line in wanted]
