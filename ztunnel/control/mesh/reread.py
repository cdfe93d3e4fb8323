"""A mesh file that is read again and again: only items that it did not have before are read anew.

What an item means does not depend on where it stands, so its text is enough to know it by. Names and references are
checked over the whole file each time, which is cheap. Nothing is ever refused here: wherever a text is not plain
(`split`), or anything in it is not right, the answer is that the text must be read as a whole, and that says what is
wrong where. So the answers of both ways are the same, errors included.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ztunnel.control.mesh.document import read_items
from ztunnel.control.mesh.localfile import Mesh, Placed, assemble, tables
from ztunnel.control.mesh.split import PARTS, PlainError, Window, join, split
from ztunnel.core.model.capture import CaptureMode
from ztunnel.runtime.slices import Steps

BATCH = 8
"""Items that are parsed in one go, about 0.2 ms."""

Known = dict[str, Any]
"""Text of an item to what it means."""


class _Nowhere:
    """The place of an item whose place does not matter, because a text with any mistake is read as a whole."""

    line = 0

    def at(self, *keys: str) -> _Nowhere:
        return self

    def refuse(self, why: str) -> None:
        raise PlainError


class Rereader:
    def __init__(self, *, trust_domain: str, capture: CaptureMode) -> None:
        self._tables = tables(trust_domain)
        self._capture = capture
        self._known: dict[tuple[str, int], Known] = {}
        """By part and indentation, as of the last text that was a mesh."""

    def read(self, text: str) -> Steps[Mesh | None]:
        """The mesh of the text, in steps of a fraction of a millisecond; None when the whole has to be read."""
        parts: dict[str, list[Placed]] = {part: [] for part in PARTS}
        known: dict[tuple[str, int], Known] = {}
        nowhere = _Nowhere()
        try:
            for window in split(text):
                key = window.part, window.indent
                here = known.setdefault(key, {})
                yield from self._read_window(window, self._known.get(key, {}), here)
                parts[window.part] += [Placed(here[item], nowhere) for item in window.items]
            mesh = yield from assemble(parts, self._capture)
        except PlainError:
            return None
        self._known = known
        for placed in parts.values():  # to free them all at once would take too long as well
            while placed:
                del placed[-BATCH:]
                yield
        return mesh

    def _read_window(self, window: Window, before: Known, here: Known) -> Steps[None]:
        missing = []
        for item in window.items:
            if item in before:
                here[item] = before[item]
            elif item not in here:
                missing.append(item)
        yield
        for start in range(0, len(missing), BATCH):
            batch = missing[start : start + BATCH]
            here.update(zip(batch, self._read_batch(window._replace(items=batch)), strict=True))
            yield

    def _read_batch(self, batch: Window) -> Iterable[Any]:
        read = self._tables[batch.part]
        cursors = read_items(join(batch))
        if len(cursors) != len(batch.items):
            raise PlainError
        values, first = [], 1
        for cursor, item in zip(cursors, batch.items, strict=True):
            after = first + item.count("\n") + 1
            if not first <= cursor.line < after:
                raise PlainError
            value = read(cursor)
            if cursor.document.problems:
                raise PlainError
            values.append(value)
            first = after
        return values
