"""How a log line looks: ztunnel's plain form (tab separated) and its JSON form.

One event is one line: control characters that came from outside are escaped, so that no peer can forge a line.
Structured fields come in `extra={"fields": {...}}`; their order is kept. Plain form: text is quoted, numbers and
`Bare` text (addresses) are not. The only exception to one line is a traceback in plain form, indented beneath its line.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal

import msgspec

from ztunnel.core.model.address import Address
from ztunnel.observe.log_filter import level_name

LogFormat = Literal["plain", "json"]

PACKAGE_PREFIX = "ztunnel."


class Bare(str):
    """Text that plain form shows without quotes, e.g. `10.0.0.1:80`; quoted after all when it holds odd characters."""

    __slots__ = ()


_BARE = re.compile(r'[^\s"\\=\x00-\x20\x7f-\uffff]+')
_CLEAN = re.compile(r"[ !#-\[\]-~]*")
"""Text that needs no escapes."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def timestamp(seconds: float) -> str:
    """Seconds since the epoch as RFC 3339 in UTC with microseconds, e.g. `2024-08-21T15:56:41.707000Z`."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")[:-6] + "Z"


def one_line(text: str) -> str:
    """`text` with control characters and line separators shown as escapes."""
    return _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text) if _CONTROL.search(text) else text


def plain_value(value: object) -> str:
    """A field's value in plain form. (The common cases come first: this runs a dozen times for each connection.)"""
    if isinstance(value, str):
        if isinstance(value, Bare):
            return str(value) if _BARE.fullmatch(value) else _quoted(value)
        return f'"{value}"' if _CLEAN.fullmatch(value) else _quoted(value)
    if isinstance(value, Address):
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    return _quoted(str(value))


def _quoted(text: str) -> str:
    return one_line(json.dumps(text, ensure_ascii=False))


def _fields(record: logging.LogRecord) -> Mapping[str, object]:
    fields: Mapping[str, object] = getattr(record, "fields", {})
    return fields


class PlainFormatter(logging.Formatter):
    """`<time>\\t<level>\\t<target>\\t<message>[\\t<key=value ...>]`."""

    def format(self, record: logging.LogRecord) -> str:
        target = record.name.removeprefix(PACKAGE_PREFIX)
        parts = [timestamp(record.created), level_name(record.levelno), target, one_line(record.getMessage())]
        fields = _fields(record)
        if fields:
            parts.append(" ".join([f"{key}={plain_value(value)}" for key, value in fields.items()]))
        line = "\t".join(parts)
        if record.exc_info:
            trace = self.formatException(record.exc_info)
            line += "".join(f"\n\t{one_line(row)}" for row in trace.splitlines())
        return line


class JsonFormatter(logging.Formatter):
    """One object a line: level, time, scope, message, then the fields beside them."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "level": level_name(record.levelno),
            "time": timestamp(record.created),
            "scope": record.name,
            "message": record.getMessage(),
        }
        for key, value in _fields(record).items():
            entry[key] = str(value) if isinstance(value, Address | Bare) else value
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(entry, enc_hook=str).decode()


def formatter(form: LogFormat) -> logging.Formatter:
    return JsonFormatter() if form == "json" else PlainFormatter()
