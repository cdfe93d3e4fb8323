"""What is kept of a bench, as JSON and as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from benches.profiles import METRICS, PEERS, PROFILES, Profile
from benches.stats import BETTER_PEER, ITSELF, Goal, Ratio, Summary, ratio, ratio_to_better, summarize

STYLES = {True: "green", False: "red", None: ""}
Values = Mapping[str, Sequence[float]]
"""Samples by design."""


class Sample(msgspec.Struct, frozen=True):
    """One number of one round."""

    line: str
    metric: str
    design: str
    round: int
    value: float


class Report(msgspec.Struct, frozen=True):
    """Everything a bench found out; `failures` are measurements that gave no number."""

    profile: str
    facts: dict[str, str]
    designs: dict[str, str]
    samples: list[Sample]
    failures: list[str]


class Verdict(msgspec.Struct, frozen=True):
    """One goal and what it bounds, a ratio or the number itself; both are None without a peer to compare with."""

    design: str
    goal: str
    ratio: bool
    value: float | None
    met: bool | None


class Row(msgspec.Struct, frozen=True):
    """One line of the table: a metric's summary per design, our designs' ratios to the better peer, and the goals."""

    line: str
    title: str
    metric: str
    unit: str
    summaries: dict[str, Summary]
    ratios: dict[str, Ratio]
    verdicts: list[Verdict]


def rows(report: Report) -> Iterator[Row]:
    """The table's rows in the order of the profile's lines; a design without samples is absent from its row."""
    profile = PROFILES[report.profile]
    values: dict[tuple[str, str], dict[str, list[float]]] = {}
    for sample in report.samples:
        values.setdefault((sample.line, sample.metric), {}).setdefault(sample.design, []).append(sample.value)
    for line in profile.lines:
        for name, metric in METRICS.items():
            found = values.get((line.name, name))
            if found is None:
                continue
            peers = {peer: found[peer] for peer in PEERS if metric.compared and peer in found}
            ratios = {
                design: share
                for design, ours in found.items()
                if design not in PEERS and (share := ratio_to_better(ours, peers, more=metric.more)) is not None
            }
            yield Row(
                line=line.name,
                title=line.title,
                metric=name,
                unit=metric.unit,
                summaries={design: summarize(samples) for design, samples in found.items()},
                ratios=ratios,
                verdicts=[
                    verdict(goal, design, found, ratios)
                    for design in profile.judged
                    if design in found
                    for goal in profile.goals.get((line.name, name), ())
                ],
            )


def verdict(goal: Goal, design: str, found: Values, ratios: Mapping[str, Ratio]) -> Verdict:
    value: float | None
    if goal.against == ITSELF:
        value = summarize(found[design]).median
    elif goal.against == BETTER_PEER:
        value = ratios[design].value if design in ratios else None
    else:
        value = ratio(found[design], found.get(goal.against, ()))
    return Verdict(design, str(goal), goal.against != ITSELF, value, None if value is None else goal.met(value))


def write_json(report: Report, path: Path) -> None:
    """Facts, every sample and the summary rows, so that others can compute what we did not."""
    document = {"report": report, "rows": list(rows(report))}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(document)) + b"\n")


def read_json(path: Path) -> Report:
    """What `write_json` kept; the rows are made anew. Raises OSError and ValueError."""

    class Document(msgspec.Struct):
        report: Report

    return msgspec.json.decode(path.read_bytes(), type=Document).report


def show(report: Report, designs: Sequence[str], console: Console) -> None:
    """Prints facts, the table and what failed."""
    profile = PROFILES[report.profile]
    console.print(f"profile {profile.name}: {profile.title}", highlight=False)
    for name, fact in report.facts.items():
        console.print(f"{name}: {fact}", highlight=False)
    console.print(table(report, profile, designs))
    for note in profile.notes:
        console.print(note, highlight=False)
    for failure in report.failures:
        console.print(f"no number: {failure}", style="red", markup=False, highlight=False)


def table(report: Report, profile: Profile, designs: Sequence[str]) -> Table:
    made = Table(box=box.SIMPLE_HEAD)
    made.add_column("line", no_wrap=True)
    made.add_column("unit", no_wrap=True)
    for design in designs:
        made.add_column(f"{design} {report.designs[design]}", justify="right")
    made.add_column("ours / better peer", no_wrap=True)
    made.add_column("goal", no_wrap=True)
    previous = ""
    for row in rows(report):
        cells = [spread(row.summaries.get(design)) for design in designs]
        shares = [named(design, share(found), profile) for design, found in row.ratios.items()]
        judged = [named(found.design, coloured(found), profile) for found in row.verdicts]
        made.add_row(row.title if row.line != previous else "", row.unit, *cells, "\n".join(shares), "\n".join(judged))
        previous = row.line
    return made


def named(design: str, text: str, profile: Profile) -> str:
    """`text` with the design before it, where more than one of them is ours."""
    several = sum(name not in PEERS for name in profile.designs) > 1
    return f"{design.removeprefix('ours-')} {text}" if several else text


def share(found: Ratio) -> str:
    tie = ", tie" if found.tie else ""
    return f"{found.value:.2f}x {found.peer}{tie}"


def coloured(found: Verdict) -> str:
    style = STYLES[found.met]
    text = f"{found.goal}: {judgement(found)}"
    return f"[{style}]{text}[/]" if style else text


def judgement(found: Verdict) -> str:
    """`met`, `missed`, or `open` when there is nothing to measure against."""
    return {True: "met", False: "missed", None: "open"}[found.met]


def spread(summary: Summary | None) -> str:
    """`median (low..high)` with three significant digits."""
    if summary is None:
        return "-"
    median, low, high = (number(value) for value in summary[:3])
    return median if summary.rounds == 1 else f"{median} ({low}..{high})"


def number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
