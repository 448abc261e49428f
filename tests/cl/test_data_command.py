"""The body of ``aimmerge data``: plain data, an honest status, and tables that show it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from aimmerge_fast.cl.data.command import check, convert, list_streams, show
from aimmerge_fast.cl.data.sources import Source
from tests.cl.task_files import plain_task, rows, task_files, write


def shown(report: dict[str, Any]) -> str:
    json.dumps(report)  # plain data
    out = io.StringIO()
    show(report, Console(file=out, width=200))
    return out.getvalue()


def test_the_streams_are_listed() -> None:
    report = list_streams()
    assert report["ok"]
    assert [entry["name"] for entry in report["streams"]][:2] == ["order1", "order2"]
    text = shown(report)
    for words in ("dbpedia → amazon", "SuperNI", "cross19", "the paper does not give", "parquet"):
        assert words in text


def test_a_sound_folder(tmp_path: Path) -> None:
    plain_task(tmp_path, "dbpedia")
    plain_task(tmp_path, "yahoo", test=0)
    report = check(tmp_path)
    assert report["ok"]
    dbpedia, yahoo = report["tasks"]
    assert (dbpedia["train"], dbpedia["dev"], dbpedia["test"], dbpedia["notes"]) == (40, 8, 6, [])
    assert (yahoo["dev"], yahoo["test"], yahoo["labels"]) == (4, 4, ["red", "blue"])
    assert {entry["name"]: (entry["present"], entry["tasks"]) for entry in report["streams"]} == {
        **dict.fromkeys(("order1", "order2", "order3"), (2, 4)),
        **dict.fromkeys(("order4", "order5", "order15b"), (2, 15)),
        "cross19": (2, 19),
    }
    text = shown(report)
    assert "no test file: half of dev (4) selects" in text
    assert "order4: 2 of 15 tasks" in text


def test_what_is_malformed_is_a_row_and_a_bad_status(tmp_path: Path) -> None:
    plain_task(tmp_path, "dbpedia")
    plain_task(tmp_path, "yahoo", dev=0, test=0)
    task_files(tmp_path, "amazon", train=[{"id": "x"}], dev=rows(4, "d"))
    report = check(tmp_path)
    assert not report["ok"]
    by_name = {row["name"]: row for row in report["tasks"]}
    assert by_name["dbpedia"]["error"] is None
    assert "record 0 has the fields id" in by_name["amazon"]["error"]
    assert "missing files: yahoo (has only train" in by_name["yahoo"]["error"]
    assert {entry["present"] for entry in report["streams"]} == {1}
    assert "record 0 has the fields id" in shown(report)


def test_tasks_asked_for_and_not_there(tmp_path: Path) -> None:
    plain_task(tmp_path, "dbpedia")
    report = check(tmp_path, tasks="dbpedia,cb")
    assert not report["ok"]
    assert report["tasks"][1]["error"] == "missing files: cb (train/cb_T5.json or cb/train.json)"
    assert check(tmp_path, tasks="dbpedia")["ok"]


def test_the_variant_shows_in_notes(tmp_path: Path) -> None:
    same = rows(6, "same")
    task_files(tmp_path, "cb", train=rows(30, "t"), dev=same, test=same)
    assert "held out of train" in check(tmp_path)["tasks"][0]["notes"][0]
    assert "left as released" in check(tmp_path, variant="faithful")["tasks"][0]["notes"][0]


def test_bad_requests(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        check(tmp_path / "none")
    with pytest.raises(ValueError, match="holds no task files"):
        check(tmp_path)
    plain_task(tmp_path, "cb")
    with pytest.raises(ValueError, match="format 'xml' is not known"):
        check(tmp_path, format="xml")
    with pytest.raises(ValueError, match="variant 'raw' is not known"):
        check(tmp_path, variant="raw")
    with pytest.raises(ValueError, match="'nope' is not known"):
        check(tmp_path, tasks="nope")


def test_markup_in_an_error_is_text(tmp_path: Path) -> None:
    plain_task(tmp_path, "cb")
    write(tmp_path / "train/cb_T5.json", [{"[/red]": 1}])
    assert "[/red]" in shown(check(tmp_path))


def test_conversion_writes_what_it_can(tmp_path: Path) -> None:
    def hub(source: Source, split: str) -> list[dict[str, Any]]:
        if "yelp" not in source.path:
            raise ConnectionError("no route to the hub")
        return [{"label": i % 5, "text": f"{split} {i}"} for i in range(20)]

    report = convert("yelp,ag", tmp_path, loader=hub)
    assert not report["ok"]
    assert report["tasks"][0] == {
        **{"name": "yelp", "train": 20, "dev": 0, "test": 20, "error": None}
    }
    assert report["tasks"][1]["error"] == "no route to the hub"
    assert "no route to the hub" in shown(report)
    assert [row["name"] for row in check(tmp_path)["tasks"]] == ["yelp"]
    again = convert(["yelp"], tmp_path, loader=hub)
    assert "exists" in again["tasks"][0]["error"]
    assert convert(["yelp"], tmp_path, loader=hub, overwrite=True)["ok"]


def test_superni_has_no_converter(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no converter for task1572"):
        convert("order6", tmp_path)
