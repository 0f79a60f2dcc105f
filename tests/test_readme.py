"""The README shows the tables that the repository holds."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHOWN = re.findall(
    r"<!-- (results/\S+\.md) -->\n(.*?)<!-- end -->", (ROOT / "README.md").read_text(), re.DOTALL
)


def test_the_readme_shows_tables() -> None:
    assert SHOWN


@pytest.mark.parametrize(("path", "text"), SHOWN, ids=[path for path, _ in SHOWN])
def test_a_table_of_the_readme_is_the_committed_one(path: str, text: str) -> None:
    table = (ROOT / path).read_text().split("\n\n")[1]
    assert text.strip() == table.strip()
