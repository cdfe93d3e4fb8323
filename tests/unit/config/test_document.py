from pathlib import Path

from ztunnel.config.document import markdown
from ztunnel.config.environ import VARIABLES

PAGE = Path(__file__).parents[3] / "docs" / "configuration.md"


def test_the_page_is_what_the_table_gives():
    assert PAGE.read_text() == markdown(), "run: python -m ztunnel.config.document > docs/configuration.md"


def test_every_variable_has_a_row_with_a_sentence():
    page = markdown()
    for variable in VARIABLES:
        assert f"| `{variable.name}` |" in page
        assert variable.sentence.endswith(".")
