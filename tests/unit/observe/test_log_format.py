"""Log lines are one line each, in ztunnel's plain and JSON forms, whatever the outside puts into them."""

from __future__ import annotations

import json
import logging

import pytest

from ztunnel.core.model.address import Address
from ztunnel.observe.log_format import Bare, JsonFormatter, PlainFormatter, formatter, plain_value


def record(
    message: str, *, name: str = "ztunnel.control.mesh", fields: dict[str, object] | None = None
) -> logging.LogRecord:
    made = logging.LogRecord(name, logging.WARNING, "", 0, message, (), None)
    made.created = 1_724_255_801.707
    if fields:
        made.fields = fields
    return made


FIELDS: dict[str, object] = {"addr": Address("10.0.0.1", 80), "to": Bare("10.0.0.2:80"), "name": 'a "b"', "n": 3}


def test_plain_line_is_tab_separated_with_bare_addresses_and_quoted_text() -> None:
    line = PlainFormatter().format(record("connected", fields=FIELDS))
    assert line == (
        "2024-08-21T15:56:41.707000Z\twarn\tcontrol.mesh\tconnected\t"
        'addr=10.0.0.1:80 to=10.0.0.2:80 name="a \\"b\\"" n=3'
    )


def test_plain_line_without_fields_ends_after_the_message() -> None:
    line = PlainFormatter().format(record("connected", name="access"))
    assert line == "2024-08-21T15:56:41.707000Z\twarn\taccess\tconnected"


def test_json_line_has_the_fields_beside_the_message() -> None:
    line = JsonFormatter().format(record("connected", fields=FIELDS))
    assert line == (
        '{"level":"warn","time":"2024-08-21T15:56:41.707000Z","scope":"ztunnel.control.mesh","message":"connected",'
        '"addr":"10.0.0.1:80","to":"10.0.0.2:80","name":"a \\"b\\"","n":3}'
    )


@pytest.mark.parametrize("form", ["plain", "json"])
@pytest.mark.parametrize("hostile", ["a\nb", "a\r\nb", "a\x1b[31mb", "a\u2028b", "\x00", "a b=c"])
def test_hostile_text_cannot_forge_a_line_or_a_field(form: str, hostile: str) -> None:
    made = record(f"peer said {hostile}", fields={"authority": Bare(hostile), "error": hostile})
    line = formatter("json" if form == "json" else "plain").format(made)
    assert not any(character < " " and character != "\t" for character in line)
    if form == "json":
        assert json.loads(line)["authority"] == hostile
    else:
        assert len(line.splitlines()) == 1
        assert ' error="' in line
        assert 'authority="' in line


@pytest.mark.parametrize(
    ("value", "text"), [(None, "null"), (True, "true"), (1.5, "1.5"), ("ü", '"ü"'), (Bare(""), '""')]
)
def test_plain_values(value: object, text: str) -> None:
    assert plain_value(value) == text


def test_traceback_is_indented_beneath_its_line_and_a_field_in_json() -> None:
    made = record("a bug")
    try:
        raise RuntimeError("first\nsecond")
    except RuntimeError as error:
        made.exc_info = (type(error), error, error.__traceback__)
    first, *rest = PlainFormatter().format(made).split("\n")
    assert first.endswith("\ta bug")
    assert rest
    assert all(row.startswith("\t") for row in rest)
    assert "RuntimeError: first\nsecond" in json.loads(JsonFormatter().format(made))["exception"]
