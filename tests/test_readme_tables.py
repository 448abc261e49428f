"""bench/readme_tables.py: the committed README is what the results give; bad input; the values."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import readme_tables
from readme_tables import BAD_INPUT, BLOCKS, DIFFERS
from tests.pages import ROOT

README = ROOT / "README.md"
RESULTS = ROOT / "bench/results"
PAGE = "Before.\n<!-- table: methods -->\nold\n<!-- /table -->\nAfter.\n"
EVERY = {
    "tasks": {"a": {}, "b": {}},
    "arms": [
        {"name": "aim", "scores": [[80.0, 20.0], [66.66, 1.04]], "merges": None},
        {
            **{"name": "mtl", "scores": [[50.0, None]]},
            "merges": {"total": {"merges": {"due": 3, "forced": 1}}},
        },
    ],
}
MADE = """\
| method | after a | after b | merges |
|---|---|---|---|
| `aim` | 80.0 / 20.0 | 66.7 / 1.0 | – |
| `mtl` | – | 50.0 / not run | 4 |
"""


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A page with one block, and a results file for it."""
    (tmp_path / "page.md").write_text(PAGE)
    (tmp_path / "every_method.json").write_text(json.dumps(EVERY))
    return tmp_path


def run(folder: Path, *options: str) -> int:
    paths = ["--readme", str(folder / "page.md"), "--results", str(folder)]
    return readme_tables.main([*paths, *options])


def test_the_committed_readme_is_what_the_results_give(capsys: pytest.CaptureFixture[str]) -> None:
    code = readme_tables.main(["--check"])
    assert code == 0, capsys.readouterr().out
    page = README.read_text(encoding="utf-8")
    for name in BLOCKS:
        assert page.count(f"<!-- table: {name} -->\n") == 1, name


def test_a_changed_figure_of_a_results_file_is_seen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(RESULTS, tmp_path / "results", ignore=shutil.ignore_patterns("*.png"))
    path = tmp_path / "results/merge_overhead_cpu.json"
    record = json.loads(path.read_text())
    record["cases"][0]["us"] *= 2
    doubled = f"{record['cases'][0]['us'] / 1e3:.3g}"
    path.write_text(json.dumps(record))
    before = README.read_bytes()
    assert readme_tables.main(["--check", "--results", str(path.parent)]) == DIFFERS
    changed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("+| ")]
    assert len(changed) == 1
    assert changed[0].startswith(f"+| T5-large | 2,359,296 in 288 | {doubled}")
    assert README.read_bytes() == before


def test_check_writes_nothing_and_shows_the_difference(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(made, "--check") == DIFFERS
    out = capsys.readouterr().out
    assert "-old\n" in out
    assert "+| `aim` | 80.0 / 20.0 | 66.7 / 1.0 | – |\n" in out
    assert (made / "page.md").read_text() == PAGE


def test_a_block_is_rewritten_and_the_rest_stays(made: Path) -> None:
    (made / "page.md").chmod(0o640)
    assert run(made) == 0
    page = made / "page.md"
    assert page.read_text(encoding="utf-8") == PAGE.replace("old\n", MADE)
    assert page.stat().st_mode & 0o777 == 0o640
    assert (run(made), run(made, "--check")) == (0, 0)
    assert {path.name for path in made.iterdir()} == {"page.md", "every_method.json"}


def test_line_ends_and_a_link_stay(made: Path) -> None:
    page = made / "page.md"
    page.rename(made / "real.md")
    (made / "real.md").write_bytes(PAGE.replace("\n", "\r\n").encode())
    page.symlink_to(made / "real.md")
    assert run(made) == 0
    assert page.is_symlink()
    wanted = PAGE.replace("old\n", MADE).replace("\n", "\r\n")
    assert (made / "real.md").read_bytes() == wanted.encode()


OPEN, CLOSE = "<!-- table: methods -->\n", "<!-- /table -->\n"


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (f"a\n{OPEN}b\n", "page.md:2: table 'methods' is not closed"),
        (f"{OPEN}{OPEN}{CLOSE}", "page.md:1: table 'methods' is not closed"),
        (f"a\n{CLOSE}", "page.md:2: <!-- /table --> closes no table"),
        (f"{OPEN}{CLOSE}{CLOSE}", "page.md:3: <!-- /table --> closes no table"),
        (
            f"<!-- table: mergers -->\n{CLOSE}",
            "page.md:1: unknown table 'mergers'; known are merge",
        ),
        (f"<!--table: merge-->\n{CLOSE}", "page.md:1: '<!--table: merge-->' is no mark; write"),
        (f"<!-- table -->\n{CLOSE}", "page.md:1: '<!-- table -->' is no mark; write"),
    ],
)
def test_a_page_with_a_wrong_mark_is_refused(
    made: Path, page: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (made / "page.md").write_text(page)
    for options in ([], ["--check"]):
        assert run(made, *options) == BAD_INPUT
        error = capsys.readouterr().err
        assert error.startswith(f"error: {message}")
        assert error.count("\n") == 1
        assert (made / "page.md").read_text() == page


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file or directory; run its bench"),
        ("", "is no JSON"),
        ('{"tasks": {"a"', "is no JSON"),
        ("[]", "holds no record but a list"),
        ("{}", "is not what its bench writes: no 'tasks'"),
        ('{"tasks": {}, "arms": 3}', "is not what its bench writes"),
        (json.dumps(EVERY).replace("66.66", "NaN"), "is no JSON: NaN is no figure"),
        (json.dumps(EVERY).replace("66.66", '"66"'), "is not what its bench writes"),
    ],
)
def test_a_bad_results_file_is_refused(
    made: Path, text: str | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = made / "every_method.json"
    path.unlink() if text is None else path.write_text(text)
    for options in ([], ["--check"]):
        assert run(made, *options) == BAD_INPUT
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert message in error
        assert str(path) in error
        assert error.count("\n") == 1
        assert (made / "page.md").read_text() == PAGE


def test_a_full_disk_and_a_page_that_cannot_be_read(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(readme_tables.os, "fsync", full)
    assert run(made) == BAD_INPUT
    assert "No space left on device" in capsys.readouterr().err
    assert (made / "page.md").read_text() == PAGE
    assert len(list(made.iterdir())) == 2
    (made / "page.md").write_bytes(b"\xff\xfe")
    assert run(made) == BAD_INPUT
    assert "is not UTF-8" in capsys.readouterr().err
    (made / "page.md").unlink()
    assert run(made) == BAD_INPUT
    assert "cannot read" in capsys.readouterr().err
