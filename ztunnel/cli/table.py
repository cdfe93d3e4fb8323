"""Tables for people: upper-case headers, columns as wide as their content, `-` for nothing.

What is shown may come from other machines, so control characters are made visible instead of reaching the terminal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ztunnel.observe.log_format import one_line

EMPTY = "-"
GAP = "  "


def render(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """The whole table with a final newline; no colour, no trailing blanks."""
    cells = [[header.upper() for header in headers], *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headers))]
    lines = [GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return one_line(str(value)) if value is not None and value != "" else EMPTY
