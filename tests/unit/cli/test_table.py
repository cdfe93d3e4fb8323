"""Tables are as wide as their content and show nothing that a terminal would obey."""

from __future__ import annotations

from ztunnel.cli.table import render


def test_columns_are_padded_by_content_and_lines_have_no_trailing_blanks() -> None:
    assert render(("name", "ip"), [("a", "10.0.0.1"), ("longer", "::1")]) == (
        "NAME    IP\n"
        "a       10.0.0.1\n"
        "longer  ::1\n"
    )  # fmt: skip


def test_nothing_is_a_dash_and_booleans_are_lower_case() -> None:
    assert render(("a", "b", "c", "d"), [(None, "", False, 0)]) == "A  B  C      D\n-  -  false  0\n"


def test_a_table_without_rows_is_its_headers() -> None:
    assert render(("a", "b"), []) == "A  B\n"


def test_control_characters_are_shown_and_not_obeyed() -> None:
    assert render(("a",), [("x\x1b[31m\ny",)]) == "A\nx\\u001b[31m\\u000ay\n"
