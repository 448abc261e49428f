"""Converters, on rows in the columns of each primary dataset; prompts as the records have them."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from aimmerge_fast.cl.data import load_task
from aimmerge_fast.cl.data.primary import convert_task, convertible, hub_rows
from aimmerge_fast.cl.data.prompts import QUESTIONS
from aimmerge_fast.cl.data.sources import SOURCES, Source
from aimmerge_fast.cl.streams import ORDERS
from tests.cl.primary_rows import ROWS


class Hub:
    """Stands for ``datasets``: rows by split, and what was asked of it."""

    def __init__(self, **splits: list[dict[str, Any]]) -> None:
        self.splits = splits
        self.asked: list[tuple[str, str | None, str]] = []

    def __call__(self, source: Source, split: str) -> list[dict[str, Any]]:
        self.asked.append((source.path, source.config, split))
        return self.splits["train" if split == "train" else "test"]


def yelp(count: int, tag: str = "t") -> list[dict[str, Any]]:
    return [{"label": i % 5, "text": f"{tag} {i}"} for i in range(count)]


def read(folder: Path, split: str, task: str) -> Any:
    return json.loads((folder / split / f"{task}_T5.json").read_text(encoding="utf-8"))


def test_every_task_of_the_long_sequence_has_a_converter() -> None:
    assert {*SOURCES} == {*QUESTIONS} == {*ROWS} == {*ORDERS["order4"].tasks}


@pytest.mark.parametrize("task", ROWS)
def test_a_row_becomes_the_record(tmp_path: Path, task: str) -> None:
    row, prompt, answer = ROWS[task]
    counts = convert_task(task, tmp_path, loader=Hub(train=[row], test=[row]))
    assert counts == {"train": 1, "dev": 0, "test": 1}
    for split in ("train", "test"):
        record = {"id": f"{task}_0", "input": prompt, "output": answer}
        assert read(tmp_path, split, task) == [record]


def test_a_question_without_content_is_asked_by_its_title(tmp_path: Path) -> None:
    row = {**ROWS["yahoo"][0], "question_content": ""}
    convert_task("yahoo", tmp_path, loader=Hub(train=[row], test=[row]))
    (record,) = read(tmp_path, "test", "yahoo")
    assert record["input"].endswith("Government.\nQuestion: T?\nAnswer: B\n\nAnswer:")


def test_sizes_shuffle_and_splits(tmp_path: Path) -> None:
    train, test = yelp(1700), yelp(3000, "x")
    counts = convert_task("yelp", tmp_path, loader=Hub(train=train, test=test))
    assert counts == {"train": 1000, "dev": 500, "test": 2500}
    order = random.Random(42).sample(range(1700), 1700)
    texts = [r["input"].split("Text: ")[1].split("\n")[0] for r in read(tmp_path, "train", "yelp")]
    assert texts == [f"t {i}" for i in order[:1000]]
    assert [record["id"] for record in read(tmp_path, "dev", "yelp")][:2] == ["yelp_0", "yelp_1"]
    answers = Counter(record["output"] for record in read(tmp_path, "test", "yelp"))
    assert set(answers.values()) == {500}
    task = load_task(tmp_path, "yelp")
    assert (len(task.train), len(task.dev), len(task.test), task.notes) == (1000, 500, 2500, ())


def test_a_small_source_trains_on_all_and_has_no_dev_file(tmp_path: Path) -> None:
    row = ROWS["cb"][0]
    train = [{**row, "premise": f"P{i}", "label": i % 3} for i in range(250)]
    test = [{**row, "premise": f"Q{i}", "label": i % 3} for i in range(56)]
    hub = Hub(train=train, test=test)
    assert convert_task("cb", tmp_path, loader=hub) == {"train": 250, "dev": 0, "test": 56}
    assert not (tmp_path / "dev").exists()
    assert hub.asked == [
        ("aps/super_glue", "cb", "train"),
        ("aps/super_glue", "cb", "validation"),
    ]
    task = load_task(tmp_path, "cb")
    assert (len(task.train), len(task.dev)) == (225, 25)


def test_classes_that_count_from_one(tmp_path: Path) -> None:
    rows = [{"label": str(i % 5 + 1), "title": "T", "content": f"c{i}"} for i in range(10)]
    header = {"label": "label", "title": "title", "content": "content"}
    convert_task("amazon", tmp_path, loader=Hub(train=[header, *rows], test=rows))
    answers = {
        record["input"].split("Text: ")[1].split("\n")[0]: record["output"]
        for record in read(tmp_path, "train", "amazon")
    }
    assert len(answers) == 10
    assert (answers["c0"], answers["c4"]) == ("very negative", "very positive")


def test_unlabelled_rows_are_left_out(tmp_path: Path) -> None:
    row = ROWS["mnli"][0]
    rows = [{**row, "premise": f"P{i}", "label": i % 4 - 1} for i in range(8)]
    counts = convert_task("mnli", tmp_path, loader=Hub(train=rows, test=rows))
    assert counts == {"train": 6, "dev": 0, "test": 6}
    unlabelled = [{**row, "label": -1}]
    with pytest.raises(ValueError, match=r"validation_matched: no labelled row among 1"):
        convert_task("mnli", tmp_path / "b", loader=Hub(train=rows, test=unlabelled))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 9}, r"glue, split train, row 0, column 'label': 9 is no class of 2"),
        ({"label": "entailment"}, r"column 'label': 'entailment' is no class"),
        ({"sentence1": None}, r"split train, row 0, column 'sentence1': needs a string"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    row = {**ROWS["rte"][0], **change}
    with pytest.raises(ValueError, match=message):
        convert_task("rte", tmp_path, loader=Hub(train=[row], test=[row]))
    assert not list(tmp_path.iterdir())


def test_a_row_without_its_label_column(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="column 'topic': missing; the row has label, text"):
        convert_task("yahoo", tmp_path, loader=Hub(train=yelp(1), test=yelp(1)))


def test_files_are_not_overwritten_unasked(tmp_path: Path) -> None:
    convert_task("yelp", tmp_path, loader=Hub(train=yelp(5), test=yelp(5)))
    with pytest.raises(FileExistsError, match=r"train/yelp_T5.json exists"):
        convert_task("yelp", tmp_path, loader=Hub(train=yelp(9), test=yelp(9)))
    convert_task("yelp", tmp_path, loader=Hub(train=yelp(9), test=yelp(9)), overwrite=True)
    assert len(read(tmp_path, "train", "yelp")) == 9


def test_tasks_without_a_converter() -> None:
    assert convertible(["ag", "sst2"]) == ["agnews", "sst-2"]
    with pytest.raises(ValueError, match="no converter for task363; there are converters for"):
        convertible(["ag", "task363"])


def test_the_hub_is_asked_for_the_right_split(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked: list[Any] = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: asked.append((a, k)) or yelp(1))
    assert hub_rows(SOURCES["cb"], "validation") == yelp(1)
    assert hub_rows(SOURCES["amazon"], "train") == yelp(1)
    assert asked == [
        (
            ("aps/super_glue", "cb"),
            {"split": "validation", "revision": "refs/convert/parquet"},
        ),
        (
            ("vgaraujov/amazon_review_full", None),
            {"split": "train", "revision": None, "column_names": ["label", "title", "content"]},
        ),
    ]
