"""The README's table of what this runs in: a row names tests that exist, or says "not run"."""

from __future__ import annotations

import pytest

from tests.pages import CODE, ROOT, TEST, is_defined, rows

README = (ROOT / "README.md").read_text(encoding="utf-8")
TABLE = rows(README.split("## What it runs in")[1].split("\n## ")[0])


def faults(row: list[str]) -> list[str]:
    """What is wrong with a row: a test that is not there, or no test and no word of it."""
    if len(row) != 3:
        return [f"{len(row)} cells"]
    named = CODE.findall(row[2])
    if not named:
        return [] if row[2] == "not run" else [f"{row[2]!r} names no test"]
    return [name for name in named if not TEST.fullmatch(name) or not is_defined(name)]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row[0])
def test_a_row_names_tests_that_exist(row: list[str]) -> None:
    assert faults(row) == []


def test_the_table_was_found_and_a_wrong_row_is_seen() -> None:
    assert len(TABLE) >= 25
    for cell in ("", "yes", "`tests/test_support.py::test_nothing`", "`test_support.py`"):
        assert faults(["in", "yes", cell]), cell
    assert faults(["in", "not run"])
