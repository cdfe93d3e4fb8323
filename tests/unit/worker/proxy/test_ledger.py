"""What connections did is told in batches, in an order that can be understood."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ztunnel.core.model.address import Address
from ztunnel.core.model.connection import Direction, Refusal
from ztunnel.core.model.flow import Edge, Party
from ztunnel.link.messages import Counters, EdgeDefined, Flows, Up
from ztunnel.worker.proxy.ledger import Ledger

if TYPE_CHECKING:
    from ztunnel.worker.engine.loop import Loop

EDGE = Edge(direction=Direction.OUTBOUND, source=Party(name="a"), destination=Party(name="b"))


class ControlHalf:
    def __init__(self) -> None:
        self.heard: list[Up] = []
        self.here = True

    def hear(self, message: Up) -> bool:
        if self.here:
            self.heard.append(message)
        return self.here

    @property
    def kinds(self) -> list[type]:
        return list(map(type, self.heard))


def connect_and_fail(ledger: Ledger) -> None:
    ledger.opened(ledger.number(EDGE))
    ledger.refused(Direction.OUTBOUND, Address("10.0.0.1", 4000), None, Refusal("CONNECT", 503, "no"))


def test_setting_a_connection_up_tells_nobody_and_the_batch_begins_with_who_it_is_about(loop: Loop) -> None:
    control = ControlHalf()
    ledger = Ledger(loop, control.hear)
    connect_and_fail(ledger)
    assert control.heard == []
    while not control.heard:
        loop.turn(0.05)
    assert control.kinds == [EdgeDefined, Counters, Flows]
    connect_and_fail(ledger)
    ledger.flush()
    assert control.kinds == [EdgeDefined, Counters, Flows, Counters, Flows]


def test_the_next_control_half_is_told_every_number_once(loop: Loop) -> None:
    control = ControlHalf()
    ledger = Ledger(loop, control.hear)
    control.here = False
    connect_and_fail(ledger)
    ledger.flush()
    control.here = True
    ledger.introduce()
    ledger.flush()
    assert control.kinds == [EdgeDefined, Counters, Flows]
