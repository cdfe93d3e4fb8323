"""Metric families as text: OpenMetrics 1.0, or the older Prometheus text format 0.0.4.

The two differ here only in the name of a counter's family, which has no `_total` in OpenMetrics, and in `# EOF`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

Number = int | float

OPENMETRICS_TYPE = "application/openmetrics-text;charset=utf-8;version=1.0.0"
TEXT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
END = "# EOF\n"
"""The last line of OpenMetrics."""


class Family(NamedTuple):
    """Samples of one name; that of a counter is without `_total`."""

    name: str
    help: str
    samples: Iterable[tuple[Mapping[str, str], Number]]
    """Labels and value."""
    is_counter: bool = False


def gauge(name: str, text: str, value: Number) -> Family:
    return Family(name, text, [({}, value)])


def counter(name: str, text: str, value: Number) -> Family:
    return Family(name, text, [({}, value)], is_counter=True)


def written(family: Family, *, as_openmetrics: bool) -> Iterator[str]:
    """The lines of a family."""
    yield header(family.name, family.help, is_counter=family.is_counter, as_openmetrics=as_openmetrics)
    sample = f"{family.name}_total" if family.is_counter else family.name
    for labels, value in family.samples:
        yield f"{sample}{f'{{{label_text(labels)}}}' if labels else ''} {float(value)!r}\n"


def header(name: str, text: str, *, is_counter: bool, as_openmetrics: bool) -> str:
    family = f"{name}_total" if is_counter and not as_openmetrics else name
    return f"# HELP {family} {text}\n# TYPE {family} {'counter' if is_counter else 'gauge'}\n"


def label_text(labels: Mapping[str, str]) -> str:
    return ",".join(f'{name}="{escape(value)}"' for name, value in labels.items())


def escape(value: str) -> str:
    """OpenMetrics 1.0, section "ABNF": escaped-string."""
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
