"""What a run says while it works."""

from __future__ import annotations

import io
import itertools
from types import SimpleNamespace

import pytest
from rich.console import Console

from aimmerge_fast.cl import progress
from aimmerge_fast.cl.progress import View, duration


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """``clock[0]`` is what the time is."""
    now = [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    return now


def on(terminal: bool) -> tuple[View, io.StringIO]:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=150, color_system=None)
    return View(console), text


def test_plain_lines_elsewhere(clock: list[float]) -> None:
    view, text = on(terminal=False)
    view.begin_stage("aim", 42, "yahoo", 1, ["a", "b", "c"], 120)
    clock[0] = 20.0
    view.step(10, [9.0] * 5 + [1.0, 2.0, 3.0, 4.0, 5.0, 1.0, 2.0, 3.0, 4.0, 5.0], 0)
    view.signal(8, 0.51234)
    clock[0] = 60.0
    view.step(30, [2.0] * 30, 4)
    view.signal(16, None)
    view.step(120, [2.0] * 120, 5)
    first, second, last = text.getvalue().splitlines()
    # 2 s an update: 110 updates of this stage and 120 of the next are to come
    assert first == (
        "[aim seed 42] yahoo (2/3) update 10/120  loss 3.000  merges 0  2.00 s/update  "
        "ETA of this arm 7 min 40 s"
    )
    assert "merges 4  S 8  δ 0.512  2.00 s/update  ETA of this arm 7 min 00 s" in second
    assert "S 16  0.50 s/update" in last
    assert "\x1b" not in text.getvalue()


def test_a_stage_that_goes_on_does_not_count_what_was_done(clock: list[float]) -> None:
    view, text = on(terminal=False)
    view.begin_stage("aim", 1, "a", 0, ["a"], 120)
    clock[0] = 10.0
    view.step(110, [1.0] * 110, 0)  # 100 were done before
    clock[0] = 15.0
    view.step(115, [1.0] * 115, 0)
    assert [line.split("  ")[3] for line in text.getvalue().splitlines()] == ["1.00 s/update"] * 2


def test_a_bar_on_a_terminal(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")  # rich draws no bar on a dumb terminal
    view, text = on(terminal=True)
    for stage in ("first", "second"):
        view.begin_stage("aim", 42, stage, 0, ["first", "second"], 20)
        for step in (10, 20):
            clock[0] += 5.0
            view.step(step, [1.5] * step, 1)
    view.line("[not markup] said")
    view.begin_stage("aim", 42, "third", 0, ["third"], 20)
    view.close()  # in the middle of a stage
    view.close()
    shown = text.getvalue()
    assert "[aim seed 42] first (1/2)" in shown
    assert "update 20/20" in shown
    assert "[not markup] said" in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h")  # the cursor is back


def test_silence() -> None:
    view = View(None)
    view.begin_stage("aim", 42, "a", 0, ["a"], 20)
    view.signal(8, 0.5)
    view.step(20, [1.0], 0)
    view.line("nothing")
    view.close()


def test_no_losses_yet() -> None:
    view, text = on(terminal=False)
    view.begin_stage("aim", 42, "a", 0, ["a"], 20)
    view.step(1, [], 0)
    assert "loss nan" in text.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 00 min"),
        (90061, "25 h 01 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_details_belong_to_their_stage() -> None:
    view, text = on(terminal=False)
    for stage, count in zip(("a", "b"), itertools.count(), strict=False):
        view.begin_stage("aim", 42, stage, count, ["a", "b"], 20)
        view.step(10, [1.0], 0)
        view.signal(64, 1.0)
    assert "S 64" not in text.getvalue()
