"""Families are written as Prometheus's own client writes them, and as its parsers read them."""

from __future__ import annotations

import math

import pytest
from prometheus_client import CollectorRegistry, exposition
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics

from ztunnel.observe.exposition import END, Family, Number, counter, escape, gauge, written

VALUES = (0, 1, 2.5, 1024, 123456.75)


class Theirs:
    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> list[Metric]:
        return [self._metric]


def by_client(metric: Metric, as_openmetrics: bool) -> str:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Theirs(metric))
    text: bytes = (openmetrics if as_openmetrics else exposition).generate_latest(registry)
    return text.decode()


def by_us(family: Family, as_openmetrics: bool) -> str:
    return "".join(written(family, as_openmetrics=as_openmetrics)) + (END if as_openmetrics else "")


@pytest.mark.parametrize("as_openmetrics", [True, False])
@pytest.mark.parametrize("value", VALUES)
def test_plain_numbers_are_as_the_client_writes_them(as_openmetrics: bool, value: Number) -> None:
    theirs = by_client(GaugeMetricFamily("pods", "Pods here.", value=value), as_openmetrics)
    assert by_us(gauge("pods", "Pods here.", value), as_openmetrics) == theirs
    theirs = by_client(CounterMetricFamily("lost", "Lost.", value=value), as_openmetrics)
    assert by_us(counter("lost", "Lost.", value), as_openmetrics) == theirs


@pytest.mark.parametrize("as_openmetrics", [True, False])
def test_labels_are_as_the_client_writes_them(as_openmetrics: bool) -> None:
    hostile = 'a"b\\c\nd é'
    theirs = CounterMetricFamily("refused", "Refused.", labels=["flag", "reporter"])
    theirs.add_metric([hostile, "source"], 3)
    ours = Family("refused", "Refused.", [({"flag": hostile, "reporter": "source"}, 3)], is_counter=True)
    assert by_us(ours, as_openmetrics) == by_client(theirs, as_openmetrics)


def test_a_family_without_samples_is_its_header() -> None:
    assert "".join(written(Family("a", "A.", []), as_openmetrics=False)) == "# HELP a A.\n# TYPE a gauge\n"


def test_no_value_is_written_that_is_not_a_float() -> None:
    lines = [*written(gauge("a", "A.", 10**15), as_openmetrics=True)]
    assert math.isclose(float(lines[-1].split()[1]), 1e15)


def test_a_label_cannot_end_its_line() -> None:
    assert "\n" not in escape('x"} 1\ny')
