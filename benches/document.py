"""`python -m benches.document RESULT.json ...`: writes docs/performance.md of the results of one or more campaigns.

The first result of a profile is its first campaign, the next one its second. Numbers, verdicts and facts come from the
results; what they mean is written by hand in the template, whose `{{name}}` are replaced.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import click

from benches.profiles import PEERS, PROFILES, Profile
from benches.report import Report, Row, Verdict, judgement, named, number, read_json, rows, share, spread
from benches.stats import agree

TEMPLATE = Path(__file__).with_name("performance.template.md")
OUTPUT = Path(__file__).parent.parent / "docs" / "performance.md"
PLACE = re.compile(r"\{\{([\w-]+)\}\}")
DIFFER = "**campaigns differ**"
LINE_BREAK = "<br>"

Campaigns = Sequence[Report]
"""Of one profile, in their order."""


class Judged(NamedTuple):
    """One goal and what each campaign found; None where a campaign did not measure it."""

    row: Row
    found: tuple[Verdict | None, ...]


def document(template: str, reports: Sequence[Report]) -> str:
    """The template with every place filled; ValueError names a place that nothing fills."""
    parts = {"machine": facts(reports), "failures": failures(reports)}
    for name, profile in PROFILES.items():
        campaigns = [report for report in reports if report.profile == name]
        parts[f"{name}-goals"] = goals(profile, campaigns)
        parts[f"{name}-numbers"] = numbers(profile, campaigns)
    unknown = sorted(set(PLACE.findall(template)) - set(parts))
    if unknown:
        raise ValueError(f"the template has places that nothing fills: {', '.join(unknown)}")
    return PLACE.sub(lambda match: parts[match[1]], template)


def goals(profile: Profile, campaigns: Campaigns) -> str:
    """The goals beside what was measured."""
    if not campaigns:
        return missing(profile)
    columns = [f"campaign {campaign}" for campaign in range(1, len(campaigns) + 1)]
    body = []
    previous = ""
    for judged in judgements(campaigns):
        one = next(found for found in judged.found if found is not None)
        title = named(one.design, judged.row.title, profile)
        line = "" if title == previous else title
        body.append([line, judged.row.unit, one.goal, *map(measured, judged.found), conclusion(judged.found)])
        previous = title
    return table(["line", "number", "goal", *columns, "verdict"], body)


def judgements(campaigns: Campaigns) -> Iterator[Judged]:
    """Every goal of every row, in the order of the profile."""
    found: dict[tuple[str, str, str, str], list[Verdict | None]] = {}
    described: dict[tuple[str, str, str, str], Row] = {}
    for campaign, report in enumerate(campaigns):
        for row in rows(report):
            for verdict in row.verdicts:
                key = (row.line, row.metric, verdict.design, verdict.goal)
                described.setdefault(key, row)
                found.setdefault(key, [None] * len(campaigns))[campaign] = verdict
    for key, verdicts in found.items():
        yield Judged(described[key], tuple(verdicts))


def measured(verdict: Verdict | None) -> str:
    """A ratio, or the number itself, as its goal is written."""
    if verdict is None or verdict.value is None:
        return "-"
    return number(verdict.value) + ("x" if verdict.ratio else "")


def conclusion(found: Sequence[Verdict | None]) -> str:
    """What the campaigns say together about one goal."""
    said = [verdict for verdict in found if verdict is not None]
    values = [verdict.value for verdict in said if verdict.value is not None]
    opinions = {judgement(verdict) for verdict in said}
    together = opinions.pop() if len(opinions) == 1 else "undecided"
    return f"{together}, {DIFFER}" if differ(values) else together


def differ(values: Sequence[float]) -> bool:
    return bool(values) and not agree(min(values), max(values))


def numbers(profile: Profile, campaigns: Campaigns) -> str:
    """Medians (min..max) of every design, one campaign below the other."""
    if not campaigns:
        return missing(profile)
    by_key: dict[tuple[str, str], list[Row]] = {}
    for report in campaigns:
        for row in rows(report):
            by_key.setdefault((row.line, row.metric), []).append(row)
    order = {line.name: place for place, line in enumerate(profile.lines)}
    designs = [name for name in profile.designs if any(name in report.designs for report in campaigns)]
    ours = [name for name in designs if name not in PEERS]
    body = []
    previous = ""
    for (line, _), found in sorted(by_key.items(), key=lambda item: order[item[0][0]]):
        first = found[0]
        cells = [LINE_BREAK.join(spread(row.summaries.get(name)) for row in found) for name in designs]
        ratios = [named(name, share(row.ratios[name]), profile) for row in found for name in ours if name in row.ratios]
        moved = any(differ([row.ratios[name].value for row in found if name in row.ratios]) for name in ours)
        mark = f"{LINE_BREAK}{DIFFER}" if moved else ""
        title = "" if line == previous else first.title
        body.append([title, first.unit, *cells, LINE_BREAK.join(ratios) + mark])
        previous = line
    notes = "".join(f"\n- {note}" for note in profile.notes)
    return table(["line", "number", *designs, "ours / better peer"], body) + (f"\n{notes}" if notes else "")


def facts(reports: Sequence[Report]) -> str:
    """Machine, versions and settings; where campaigns differ, each value with its campaigns."""
    everything: dict[str, dict[str, list[str]]] = {}
    counts: dict[str, int] = {}
    for report in reports:
        counts[report.profile] = counts.get(report.profile, 0) + 1
        campaign = f"{report.profile} {counts[report.profile]}"
        versions = ", ".join(f"{name} {version}" for name, version in report.designs.items())
        for name, value in {**report.facts, "designs": versions}.items():
            everything.setdefault(name, {}).setdefault(value, []).append(campaign)
    return table(
        ["fact", ""],
        [
            [
                name,
                LINE_BREAK.join(
                    value if len(values) == 1 else f"{value} ({', '.join(where)})" for value, where in values.items()
                ),
            ]
            for name, values in everything.items()
        ],
    )


def failures(reports: Sequence[Report]) -> str:
    found = [f"- {report.profile}: {failure.splitlines()[0]}" for report in reports for failure in report.failures]
    return "\n".join(found) or "None: every measurement gave a number, and no byte and no connection was lost."


def missing(profile: Profile) -> str:
    return f"Not measured yet: `./dev bench --profile {profile.name}`."


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


@click.command()
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--output", default=OUTPUT, type=click.Path(path_type=Path), help="Where the document goes.")
def main(results: tuple[Path, ...], output: Path) -> None:
    """Write docs/performance.md of the JSON files that ./dev bench made."""
    reports = []
    for path in results:
        try:
            reports.append(read_json(path))
        except ValueError as error:
            raise click.ClickException(f"{path} is no result of this bench: {error}") from error
    output.write_text(document(TEMPLATE.read_text(), reports))
    click.echo(f"{output} written of {len(reports)} results", err=True)


if __name__ == "__main__":
    main()
