"""The page on PEFT promises what is tested: a row names tests that exist, or says "not run"."""

from __future__ import annotations

import pytest

from tests.pages import CODE, ROOT, TEST, is_defined, rows
from tests.peft.kinds import KINDS

PAGE = (ROOT / "aimmerge_fast/parameters/PEFT.md").read_text(encoding="utf-8")
HERE = "tests/peft"


def faults(row: list[str]) -> list[str]:
    """What a row names that is not there; a row that names nothing must say "not run"."""
    if len(row) != 3:
        return [f"{len(row)} cells"]
    named = CODE.findall(row[2])
    if not named:
        return [] if row[2] == "not run" else [f"{row[2]!r} names no test"]
    wrong = []
    for name in named:
        if name.startswith("["):
            missing = name.strip("[]") not in KINDS
        elif TEST.fullmatch(name):
            missing = not is_defined(name, HERE)
        else:
            missing = True
        wrong += [name] if missing else []
    return wrong


@pytest.mark.parametrize("row", rows(PAGE), ids=lambda row: row[0])
def test_a_row_names_tests_that_exist(row: list[str]) -> None:
    assert faults(row) == []


def test_every_test_that_the_text_names_exists() -> None:
    prose = [line for line in PAGE.splitlines() if not line.startswith("|")]
    named = [name for name in CODE.findall("\n".join(prose)) if TEST.fullmatch(name)]
    assert len(named) >= 5
    for name in named:
        assert is_defined(name, HERE), name


def test_every_kind_has_a_row() -> None:
    named = {name for row in rows(PAGE) for name in CODE.findall(row[2]) if name[0] == "["}
    assert named == {f"[{kind}]" for kind in KINDS}


def test_a_wrong_row_is_seen() -> None:
    for cell in ("", "yes", "`[nothing]`", "`test_kinds.py::test_nothing`", "`linear`"):
        assert faults(["kind", "merged", cell]), cell
    assert faults(["kind", "not run"])
    assert faults(["kind", "", "not run"]) == []
    assert faults(["kind", "merged", "`[linear]`"]) == []
