"""The text of a mesh file as its items, each a text of its own, where its form makes that plain.

A file that changed is mostly as it was before. What stands in an item of a block sequence depends on no other item,
so an item whose text is known need not be read again. That holds only for the plain form, which is what people and
tools write: the four parts as keys of the file, each a block sequence, no anchors. Everything else is not split, and
whoever asked has to read it as a whole.

The lines alone do not prove the form: a quoted text may contain what looks like an item. Then what comes out here
is no item, or several; who reads the pieces must find exactly one item in each, beginning where the piece begins.

Pure. Knows nothing of what is in an item.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from functools import cache
from typing import NamedTuple

PARTS = ("workloads", "services", "policies", "pods")

WINDOW = 32 * 1024
"""Characters that are looked at in one go, about 0.1 ms."""

_BLANK = r"(?: *(?:#.*)?\n)*"
_PREAMBLE = re.compile(rf"{_BLANK}(?:---[ ]*\n{_BLANK})?")
_HEADER = re.compile(rf"({'|'.join(PARTS)}):(?P<empty> +\[\])? *(?: #.*)?\n{_BLANK}")
_FIRST = re.compile(r"( *)- ")
_DISTURBING = "&\r\x85\u2028\u2029\ufeff"
"""Anchors, which other items may use, and line breaks that are not counted here."""


class PlainError(Exception):
    """The text is not of the plain form."""


class Window(NamedTuple):
    """Some items in a row of one part."""

    part: str
    indent: int
    items: list[str]
    """Without the dash that begins each, and without the line break that ends it."""

    @property
    def separator(self) -> str:
        return "\n" + " " * self.indent + "- "


def join(window: Window) -> str:
    """A block sequence of these items, as they stood in the file."""
    return window.separator[1:] + window.separator.join(window.items) + "\n"


def split(text: str) -> Iterator[Window]:
    """The items, a window at a time. Raises PlainError, maybe after some windows."""
    if not text.endswith("\n"):
        raise PlainError
    at = _end(_PREAMBLE.match(text))
    _check(text[:at])
    seen = set()
    while at < len(text):
        header = _HEADER.match(text, at)
        if header is None or header[1] in seen:
            raise PlainError
        seen.add(header[1])
        _check(header[0])
        at = header.end()
        first = _FIRST.match(text, at)
        if first and header["empty"]:
            raise PlainError
        if first:
            at = yield from _items(header[1], len(first[1]), text, at)
    if not seen:
        raise PlainError


def _items(part: str, indent: int, text: str, at: int) -> Generator[Window, None, int]:
    """The items from `at` on; returns where something else begins."""
    foreign, separator = _foreign(indent), "\n" + " " * indent + "- "
    while True:
        cut = text.find(separator, at + WINDOW)
        stop = cut if cut >= 0 else len(text) - 1
        found = foreign.search(text, at, stop)
        if found:
            stop = found.start()
        body = text[at + len(separator) - 1 : stop]
        _check(body)
        yield Window(part, indent, body.split(separator))
        at = stop + 1
        if found or cut < 0:
            return at


def _check(text: str) -> None:
    if any(each in text for each in _DISTURBING):
        raise PlainError


@cache
def _foreign(indent: int) -> re.Pattern[str]:
    """A line that neither begins an item nor, by its indentation, belongs to one; comments and blank lines do."""
    less = rf"| {{0,{indent - 1}}}" if indent else ""
    return re.compile(rf"\n(?: {{{indent}}}(?!- ){less})[^ \n#]")


def _end(match: re.Match[str] | None) -> int:
    return match.end() if match else 0
