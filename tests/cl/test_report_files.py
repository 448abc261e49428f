"""The report's files: what is written, what cannot be read, runs that are not whole."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from aimmerge_fast.cl.report import read_run, style, write_report
from aimmerge_fast.cl.report.markdown import escape
from tests.cl.report_fixture import TASKS, events, results, write_run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    out = write_run(tmp_path_factory.mktemp("run"))
    stale = out / "report" / "figure-of-an-older-report.png"
    stale.parent.mkdir()
    stale.touch()
    (stale.parent / "notes.txt").touch()
    return out, write_report(out)


def test_the_files_are_those_in_the_folder(whole: tuple[Path, list[Path]]) -> None:
    out, written = whole
    names = {path.name for path in written}
    assert {path.name for path in (out / "report").iterdir()} == names | {"notes.txt"}
    assert names == {
        *("report.md", "report.html", "figure-heatmap.png", "figure-curves.png"),
        *("figure-signals-01-seqlora-1.png", "figure-signals-03-aim-1.png"),
        *("figure-history-01.png", "figure-around-merges.png", "figure-signals-scores.png"),
    }


def test_figures_are_wide_enough_to_read(whole: tuple[Path, list[Path]]) -> None:
    for path in whole[1]:
        if path.suffix == ".png":
            width, height = struct.unpack(">II", path.read_bytes()[16:24])
            assert width == 1620
            assert 300 < height < 2000


def test_markdown_links_every_figure(whole: tuple[Path, list[Path]]) -> None:
    out, written = whole
    text = (out / "report" / "report.md").read_text(encoding="utf-8")
    linked = re.findall(r"\]\(([^)]+\.png)\)", text)
    assert sorted(linked) == sorted(path.name for path in written if path.suffix == ".png")


class Page(HTMLParser):
    """Everything a browser would load, run or follow, and the tags that were opened and closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.opened: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        assert self.opened == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "iframe", "object", "embed", "base"):
            self.loaded.append(tag)
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        self.loaded += [name for name, _ in attrs if name.startswith("on")]
        if tag not in ("meta", "img"):
            self.opened.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.opened.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_html_needs_nothing_else(whole: tuple[Path, list[Path]]) -> None:
    out, written = whole
    text = (out / "report" / "report.html").read_text(encoding="utf-8")
    loaded = Page(text).loaded
    assert len(loaded) == sum(path.suffix == ".png" for path in written)
    assert all(one.startswith("data:image/png;base64,") for one in loaded)
    assert "url(" not in text
    assert "@import" not in text
    assert "http://" not in text
    assert "https://" not in text


def test_a_page_that_loads_something_is_seen() -> None:
    assert Page('<p><img src="x.png"></p><script></script>').loaded == ["x.png", "script"]


def test_the_same_run_gives_the_same_bytes(whole: tuple[Path, list[Path]], tmp_path: Path) -> None:
    again = write_report(write_run(tmp_path / "run"))
    for path, other in zip(whole[1], again, strict=True):
        assert path.read_bytes() == other.read_bytes()


HOSTILE = "a|b*c_ <b>&\\`x`[y](z)$q$#1\n- ~~d~~"


@pytest.mark.usefixtures("coarse")
def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    content = results(seeds=(42,), arms=("replay",))
    content["stream"]["tasks"][0] = HOSTILE
    content["tasks"] = {HOSTILE: {"metric": "accuracy", "notes": ["1. <i>note</i>"]}}
    content["arms"][0]["stages"][0] = HOSTILE
    content["arms"][0]["label"] = "<script>alert(1)</script>"
    out = write_run(tmp_path / "run", content)
    write_report(out)
    lines = (out / "report" / "report.md").read_text(encoding="utf-8").splitlines()
    row = next(line for line in lines if line.startswith("| a"))
    shown = r"a\|b\*c\_ \<b\>\&\\\`x\`\[y\](z)\$q\$\#1 - \~\~d\~\~"
    assert row == f"| {shown} | 83.0 → 67.5 (−15.5) |"
    page = Page((out / "report" / "report.html").read_text(encoding="utf-8"))
    assert HOSTILE in page.texts
    assert "<script>alert(1)</script>" in page.texts
    assert "script" not in page.loaded


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("task363_sst2_polarity", "task363_sst2_polarity"),
        ("_x_", r"\_x\_"),
        ("- item", r"\- item"),
        ("+ item", r"\+ item"),
        ("12. item", r"12\. item"),
        ("-1.5 points", "-1.5 points"),
        ("--- rule", r"\--- rule"),
        ("two\nlines", "two lines"),
    ],
)
def test_escape(text: str, escaped: str) -> None:
    assert escape(text) == escaped


# ---- runs that cannot be read ----------------------------------------------------------------


def test_no_results_is_an_error_that_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"cannot read .*results\.json: No such file.*--out"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(version=2), r"version 2; .* reads version 1"),
        (lambda r: r.pop("version"), r"version None"),
        (lambda r: r.update(arms={}), r"field 'arms' must be a list, got \{\}"),
        (lambda r: r["arms"][0].pop("method"), r"arms\[0\]: field 'method' must be a text"),
        (lambda r: r["arms"][1].update(scores=[[1.0]]), r"arms\[1\]: each row of 'scores' .* 3"),
        (lambda r: r["arms"][0].update(seed="42"), r"arms\[0\]: field 'seed' must be an integer"),
        (lambda r: r["arms"][0]["scores"][0].__setitem__(0, "x"), r"'x' is no number"),
        (lambda r: r["stream"].pop("tasks"), r"stream: field 'tasks' must be a list"),
    ],
)
def test_malformed_results(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    content = results()
    change(content)
    (tmp_path / "results.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        write_report(tmp_path)
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe\xff"])
def test_results_that_are_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"results\.json"):
        write_report(tmp_path)


# ---- runs that are not whole -----------------------------------------------------------------


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small pictures: what these tests look at is the text."""
    monkeypatch.setattr(style, "DPI", 30)


def report_of(folder: Path, content: dict[str, Any]) -> str:
    out = write_run(folder, content)
    write_report(out)
    return (out / "report" / "report.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("coarse")
def test_no_arms_yet(tmp_path: Path) -> None:
    text = report_of(tmp_path, results(arms=()))
    assert "No task of any arm has been scored yet." in text
    assert "No arm of this run merges." in text


@pytest.mark.usefixtures("coarse")
def test_nothing_scored_yet(tmp_path: Path) -> None:
    content = results(seeds=(42,), arms=("aim",))
    content["arms"][0].update(scores=[], finished=False, metrics={})
    text = report_of(tmp_path, content)
    assert "AIMMerging is unfinished: 0 of 3 stages" in text
    assert "| AIMMerging | 42 | – | – | – | unfinished: 0 of 3 stages |" in text


@pytest.mark.usefixtures("coarse")
def test_one_task_and_one_arm(tmp_path: Path) -> None:
    content = results(seeds=(42,), arms=("replay",))
    content["stream"]["tasks"] = ["dbpedia"]
    content["arms"][0].update(stages=["dbpedia"], scores=[[83.0]], metrics={"OP": 83.0})
    text = report_of(tmp_path, content)
    assert "| dbpedia | 83.0 |" in text
    assert "| LoRAReplay | 42 | 83.0 | – | – | finished |" in text
    assert "One seed: differences between arms are no verdict." in text


@pytest.mark.usefixtures("coarse")
def test_missing_and_broken_events_are_said(tmp_path: Path) -> None:
    out = write_run(tmp_path, results(seeds=(42,)))
    (out / "aim-s42" / "events.jsonl").unlink()
    (out / "seqlora-s42" / "events.jsonl").write_text('{"event": "nonsense"}\n', encoding="utf-8")
    write_report(out)
    text = (out / "report" / "report.md").read_text(encoding="utf-8")
    assert re.search(r"AIMMerging: events cannot be read.*events\.jsonl is missing", text)
    assert re.search(r"SeqLoRA: events cannot be read.*line 1: unknown event 'nonsense'", text)
    assert "16 merges in 240 steps" in text  # the results have the controller's own summary
    assert "Left out: it needs an arm that merges" in text


@pytest.mark.usefixtures("coarse")
def test_losses_that_are_not_finite_and_scores_that_are_missing(tmp_path: Path) -> None:
    content = results(seeds=(42,))
    aim = content["arms"][2]
    aim["losses"]["yahoo"][3:6] = ["nan", None, "inf"]
    aim["scores"][2][1] = None
    text = report_of(tmp_path, content)
    assert "58.0 → –" in text
    run = read_run(tmp_path)
    assert [math.isfinite(loss) for loss in run.arms[2].losses["yahoo"][2:7]] == [
        *(True, False, False, False, True)
    ]


@pytest.mark.usefixtures("coarse")
def test_a_run_that_was_cut_off_while_it_wrote_events(tmp_path: Path) -> None:
    out = write_run(tmp_path, results(seeds=(42,), arms=("aim",)))
    path = out / "aim-s42" / "events.jsonl"
    path.write_bytes(path.read_bytes()[:-10])
    write_report(out)
    assert len(read_run(out).arms[0].events) == len(events("aim", 42)) - 1


def test_the_fixture_is_what_the_tests_take_it_for() -> None:
    kinds = {event.event for event in events("aim", 42)}
    assert kinds == {"task_begin", "probe", "open", "close", "task_end"}
    assert {event.task for event in events("seqlora", 43)} == set(TASKS)
