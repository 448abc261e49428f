"""The tables of a report in a terminal, and where there is none."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from aimmerge_fast.cl.report import paper_table, show_section, show_summary
from tests.cl.report_fixture import results


def printed(*, encoding: str = "utf-8", **options: Any) -> str:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    console = Console(file=stream, **options)
    show_summary(results(seeds=(42,)), console)
    show_section(paper_table(results()), console)
    return raw.getvalue().decode(encoding)


def test_summary_without_a_terminal_is_aligned_plain_text() -> None:
    lines = printed(width=60).splitlines()
    head = next(line for line in lines if line.startswith("task "))
    row = next(line for line in lines if line.startswith("dbpedia"))
    assert row.index("83.0 → 67.5") < head.index("LoRAReplay") + len("LoRAReplay")
    ends = [head.index(name) + len(name) for name in ("SeqLoRA", "LoRAReplay")]
    assert [row[:end].endswith(")") for end in ends] == [True, True]
    assert "\x1b" not in "".join(lines)


def test_summary_in_a_terminal_is_split_to_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")  # on a dumb terminal rich takes 80 columns
    text = printed(width=60, force_terminal=True, color_system=None)
    assert max(map(len, text.splitlines())) <= 60
    assert text.count("│ dbpedia") >= 2
    assert text.count("83.0 → 67.5 (−15.5)") == 1


def test_summary_on_a_console_without_the_letters() -> None:
    text = printed(encoding="ascii", width=100)
    assert "83.0 -> 67.5 (-15.5)" in text
    assert "?" not in text


def test_summary_of_another_version() -> None:
    with pytest.raises(ValueError, match="version 7"):
        show_summary(results() | {"version": 7}, Console(file=io.StringIO()))
