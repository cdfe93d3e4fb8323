"""The process is told as Prometheus's own client tells it."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, ProcessCollector

from ztunnel.observe.process import families


def test_names_kinds_and_values_are_the_clients() -> None:
    theirs = {family.name: family for family in ProcessCollector(registry=CollectorRegistry()).collect()}
    ours = {family.name: family for family in families()}
    assert ours.keys() == theirs.keys()
    for name, family in ours.items():
        assert (family.help, family.is_counter) == (theirs[name].documentation, theirs[name].type == "counter")
        ((labels, value),) = family.samples
        assert not labels
        assert value == pytest.approx(theirs[name].samples[0].value, rel=0.2, abs=1)
