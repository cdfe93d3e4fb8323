"""What README.md points at is there: every test that proves a row, every page; and so for all other pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()
TABLE = TEXT.partition("## What works today")[2].partition("\n\nNot yet")[0]


@pytest.mark.parametrize("reference", sorted(set(re.findall(r"`(tests/[^`]+)`", TEXT))))
def test_a_test_that_proves_something_exists(reference: str) -> None:
    path, _, name = reference.partition("::")
    source = (ROOT / path).read_text()
    assert re.search(rf"^(async )?def {name or 'test_'}", source, re.MULTILINE), f"{path} has no {name}"


def test_every_row_names_a_test() -> None:
    rows = [line for line in TABLE.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 10
    for row in rows:
        assert "`tests/" in row.rstrip("| ").rpartition(" | ")[2], row


PATTERNS = ("*.md", "docs/*.md", "[a-z]*/README.md", "benches/*/README.md", "tests/golden/*/*.md")
PAGES = sorted(page for pattern in PATTERNS for page in ROOT.glob(pattern))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_page_links_to_exists(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []
