"""What is kept of a bench, as JSON and as a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from benches.lines import LINES, TARGETS, UNITS
from benches.stats import Summary, ratio, summarize

REFERENCE = "envoy"


class Sample(msgspec.Struct, frozen=True):
    """One number of one round."""

    line: str
    metric: str
    design: str
    round: int
    value: float


class Report(msgspec.Struct, frozen=True):
    """Everything a bench found out; `failures` are measurements that gave no number."""

    facts: dict[str, str]
    designs: dict[str, str]
    samples: list[Sample]
    failures: list[str]


class Row(msgspec.Struct, frozen=True):
    """One line of the table: a metric's summary per design, and our ratio to the reference."""

    line: str
    title: str
    metric: str
    unit: str
    summaries: dict[str, Summary]
    ratio: float | None
    target: str
    met: bool | None


def rows(report: Report) -> Iterator[Row]:
    """The table's rows in the order of the lines; a design without samples is absent from its row."""
    values: dict[tuple[str, str], dict[str, list[float]]] = {}
    for sample in report.samples:
        values.setdefault((sample.line, sample.metric), {}).setdefault(sample.design, []).append(sample.value)
    for line in LINES:
        for metric, unit in UNITS.items():
            found = values.get((line.name, metric))
            if found is None:
                continue
            share = ratio(found.get("ours", ()), found.get(REFERENCE, ()))
            target = TARGETS.get((line.name, metric))
            yield Row(
                line=line.name,
                title=line.title,
                metric=metric,
                unit=unit,
                summaries={design: summarize(samples) for design, samples in found.items()},
                ratio=share,
                target=str(target) if target else "",
                met=target.met(share) if target and share is not None else None,
            )


def write_json(report: Report, path: Path) -> None:
    """Facts, every sample and the summary rows, so that others can compute what we did not."""
    document = {"report": report, "rows": list(rows(report))}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(document)) + b"\n")


def show(report: Report, designs: Sequence[str], console: Console) -> None:
    """Prints facts, the table and what failed."""
    for name, fact in report.facts.items():
        console.print(f"{name}: {fact}", highlight=False)
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("line")
    table.add_column("unit")
    for design in designs:
        table.add_column(f"{design} {report.designs[design]}", justify="right")
    table.add_column(f"ours / {REFERENCE}", justify="right")
    table.add_column("target", justify="right")
    previous = ""
    for row in rows(report):
        cells = [spread(row.summaries.get(design)) for design in designs]
        share = "" if row.ratio is None else f"{row.ratio:.2f}"
        style = {True: "green", False: "red", None: ""}[row.met]
        title = row.title if row.line != previous else ""
        table.add_row(title, row.unit, *cells, f"[{style}]{share}[/]" if style else share, row.target)
        previous = row.line
    console.print(table)
    for failure in report.failures:
        console.print(f"no number: {failure}", style="red", markup=False, highlight=False)


def spread(summary: Summary | None) -> str:
    """`median (low..high)` with three significant digits."""
    if summary is None:
        return "-"
    median, low, high = (number(value) for value in summary[:3])
    return median if summary.rounds == 1 else f"{median} ({low}..{high})"


def number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
