"""Tasks from a folder: splits, samples, missing tasks, hashes; what is refused and how."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from aimmerge_fast.cl.data import load_stream, load_task
from aimmerge_fast.cl.data.records import content_hash
from aimmerge_fast.cl.streams import Stream, stream
from tests.cl.task_files import COLOURS, plain_task, rows, task_files, write


def test_a_clean_task_comes_as_it_is(tmp_path: Path) -> None:
    plain_task(tmp_path, "agnews")
    task = load_task(tmp_path, "ag")
    assert task.name == "agnews"
    assert task.train == json.loads((tmp_path / "train/agnews_T5.json").read_text())
    assert (len(task.train), len(task.dev), len(task.test)) == (40, 8, 6)
    assert task.metric == "accuracy"
    assert task.labels == COLOURS
    assert task.notes == ()


def test_more_fields_are_kept(tmp_path: Path) -> None:
    plain_task(tmp_path, "agnews")
    task_files(tmp_path, "agnews", train=[{**r, "data_id": 3} for r in rows(4, "t")])
    assert load_task(tmp_path, "agnews").train == [{**r, "data_id": 3} for r in rows(4, "t")]


def test_the_stream_keeps_its_order(tmp_path: Path) -> None:
    for task in ("yahoo", "dbpedia", "amazon", "agnews"):
        plain_task(tmp_path, task)
    chosen, tasks = load_stream(tmp_path, stream("order3"))
    assert [task.name for task in tasks] == ["yahoo", "amazon", "agnews", "dbpedia"]
    assert chosen is stream("order3")
    assert chosen.label is None


def test_two_folders_in_one_are_one_pool(tmp_path: Path) -> None:
    plain_task(tmp_path / "long", "dbpedia")
    plain_task(tmp_path / "superni", "task363")
    assert stream("all", folder=tmp_path).tasks == ("dbpedia", "task363")


# The halves, by their definition: the even and odd places of one permutation.
def test_without_a_test_file_half_of_dev_tests(tmp_path: Path) -> None:
    plain_task(tmp_path, "yahoo", dev=9, test=0)
    dev = rows(9, "yahoo dev")
    random.Random("42/yahoo/dev").shuffle(dev)
    for variant in ("repaired", "faithful"):
        task = load_task(tmp_path, "yahoo", variant=variant)
        assert task.dev == [dev[i] for i in (0, 2, 4, 6, 8)]
        assert task.test == [dev[i] for i in (1, 3, 5, 7)]
        (note,) = task.notes
        assert note == "no test file: half of dev (5) selects, the other half (4) tests"


def test_samples_are_seeded_and_noted(tmp_path: Path) -> None:
    plain_task(tmp_path, "yahoo", dev=30, test=30)
    task = load_task(tmp_path, "yahoo", test_items=10, dev_items=12, seed=7)
    test = rows(30, "yahoo test")
    assert task.test == random.Random("7/yahoo/test").sample(test, 10)
    assert len({record["id"] for record in task.dev}) == 12
    assert task.notes == ("12 of 30 dev records sampled", "10 of 30 test records sampled")
    assert load_task(tmp_path, "yahoo", test_items=10, dev_items=12, seed=7) == task
    assert load_task(tmp_path, "yahoo", test_items=10, dev_items=12, seed=8).test != task.test
    assert load_task(tmp_path, "yahoo", test_items=30).notes == ()
    with pytest.raises(ValueError, match="sample of -1 records"):
        load_task(tmp_path, "yahoo", test_items=-1)


def test_the_hash_is_of_the_records_as_used(tmp_path: Path) -> None:
    plain_task(tmp_path, "yahoo", test=30)
    whole = load_task(tmp_path, "yahoo").sha256
    assert load_task(tmp_path, "yahoo", test_items=29).sha256 != whole
    # other white space in the file, the same records
    path = tmp_path / "train/yahoo_T5.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=3))
    assert load_task(tmp_path, "yahoo").sha256 == whole
    records = json.loads(path.read_text())
    records[3]["output"] = "red"
    write(path, records)
    assert load_task(tmp_path, "yahoo").sha256 != whole


def test_the_hash_is_of_the_metric_and_the_splits_too() -> None:
    one, two = rows(2, "t")
    splits = {"train": [one], "dev": [two], "test": []}
    hashes = {
        content_hash(splits, "accuracy"),
        content_hash(splits, "rougeL"),
        content_hash({"train": [one], "dev": [], "test": [two]}, "accuracy"),
        content_hash({"train": [one, two], "dev": [], "test": []}, "accuracy"),
        content_hash({"train": [two, one], "dev": [], "test": []}, "accuracy"),
    }
    assert len(hashes) == 5


def test_missing_tasks_are_named(tmp_path: Path) -> None:
    plain_task(tmp_path, "dbpedia")
    plain_task(tmp_path, "amazon", test=0, dev=0)
    plain_task(tmp_path, "yahoo", train=0)
    with pytest.raises(ValueError, match="order1 lacks 3 of its 4 tasks") as raised:
        load_stream(tmp_path, stream("order1"))
    text = str(raised.value)
    assert "train/agnews_T5.json" in text
    assert f"has only train; {tmp_path / 'test/amazon_T5.json'}" in text
    assert f"has only dev, test; {tmp_path / 'train/yahoo_T5.json'}" in text
    assert "run the 1 of 4 tasks that are there with --available" in text


def test_where_nothing_is_there_nothing_is_offered(tmp_path: Path) -> None:
    plain_task(tmp_path, "amazon", test=0, dev=0)
    with pytest.raises(ValueError, match=r"lacks 4 of its 4 tasks.*Add them$"):
        load_stream(tmp_path, stream("order1"))


def test_available_runs_the_present_and_says_so(tmp_path: Path) -> None:
    plain_task(tmp_path, "yahoo")
    plain_task(tmp_path, "dbpedia")
    chosen, tasks = load_stream(tmp_path, stream("order4"), available=True)
    assert chosen.tasks == ("dbpedia", "yahoo")
    assert chosen.label == "2 of 15 tasks"
    assert (chosen.name, chosen.benchmark) == ("order4", "Long Sequence")
    assert [task.name for task in tasks] == ["dbpedia", "yahoo"]
    with pytest.raises(ValueError, match=r"none of the 15 tasks of order6.*dbpedia, yahoo"):
        load_stream(tmp_path, stream("order6"), available=True)
    # nothing is missing: no label
    assert load_stream(tmp_path, stream("yahoo"), available=True)[0].label is None


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        load_stream(tmp_path / "nowhere", stream("order1"))


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "agnews_T5.json holds no records"),
        ([rows(1, "t")[0], {"id": "b", "input": "p"}], "record 1, field 'output': missing; .*id"),
        ([{"id": "b", "input": 3, "output": "a"}], "record 0, field 'input': is int '3'"),
        ([{"id": "b", "input": "p", "output": None}], "record 0, field 'output': is null"),
        ([{"id": "b", "input": "p", "output": "  "}], "record 0, field 'output': is empty"),
        ([{"id": [], "input": "p", "output": "a"}], "record 0, field 'id': is a list"),
        ([*rows(2, "t"), "no record"], "record 2, field 'input': the record is str"),
        (["no record"], "record 0 is a str; known formats"),
        ([{"question": "p"}], "record 0 has the fields question; known formats.*trace: prompt"),
        ("text", "holds a str; known formats"),
        ({"data": []}, "has the fields data; known formats"),
    ],
)
def test_malformed_records_are_named(tmp_path: Path, records: object, message: str) -> None:
    plain_task(tmp_path, "agnews")
    write(tmp_path / "train/agnews_T5.json", records)
    with pytest.raises(ValueError, match=message) as raised:
        load_task(tmp_path, "agnews")
    assert str(tmp_path / "train/agnews_T5.json") in str(raised.value)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    plain_task(tmp_path, "agnews")
    path = tmp_path / "test/agnews_T5.json"
    path.write_text("[{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"agnews_T5.json is no JSON file in UTF-8"):
        load_task(tmp_path, "agnews")
    path.write_bytes(b"[\xff]")
    with pytest.raises(ValueError, match=r"agnews_T5.json is no JSON file in UTF-8"):
        load_task(tmp_path, "agnews")


def test_a_label_outside_the_options(tmp_path: Path) -> None:
    plain_task(tmp_path, "agnews")
    bad = rows(5, "t")
    bad[3]["output"] = "green"
    task_files(tmp_path, "agnews", test=bad)
    with pytest.raises(
        ValueError, match="record 3, field 'output': 'green' is not among"
    ) as raised:
        load_task(tmp_path, "agnews")
    assert "test/agnews_T5.json" in str(raised.value)
    assert "red, blue" in str(raised.value)
    # as accuracy compares, case and white space do not count
    bad[3]["output"] = " Red "
    task_files(tmp_path, "agnews", test=bad)
    assert len(load_task(tmp_path, "agnews").test) == 5


def test_options_that_are_no_answers_are_not_enforced(tmp_path: Path) -> None:
    listed = [
        {"id": str(i), "input": f"Options: A. up, B. down\n{i}", "output": "AB"[i % 2]}
        for i in range(20)
    ]
    task_files(tmp_path, "FOMC", train=listed[:12], dev=listed[12:16], test=listed[16:])
    task = load_task(tmp_path, "FOMC")
    assert task.labels == ("A", "B")
    assert task.notes == ()


def test_a_task_in_two_places(tmp_path: Path) -> None:
    plain_task(tmp_path / "a", "agnews")
    plain_task(tmp_path / "b", "ag_news")
    with pytest.raises(ValueError, match=r"'agnews' has its \w+ records twice: .*a/.* and .*b/"):
        load_task(tmp_path, "agnews")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"format": "csv"}, "format 'csv' is not known; known: auto, .*parquet"),
        ({"variant": "mended"}, "variant 'mended' is not known; known: repaired, faithful"),
    ],
)
def test_unknown_settings(tmp_path: Path, wrong: dict[str, str], message: str) -> None:
    plain_task(tmp_path, "agnews")
    with pytest.raises(ValueError, match=message):
        load_stream(tmp_path, stream("agnews"), **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("task", "metric"),
    [
        *((task, "accuracy") for task in ("task363", "task875", "task1687", "mnli", "C-STANCE")),
        *((task, "rougeL") for task in ("task073", "task1572", "MeetingBank", "ScienceQA")),
    ],
)
def test_published_metrics(tmp_path: Path, task: str, metric: str) -> None:
    plain_task(tmp_path, task)
    found = load_task(tmp_path, task)
    assert found.metric == metric
    assert found.notes == ()


def test_metrics_of_unknown_tasks(tmp_path: Path) -> None:
    texts = [{"id": str(i), "input": f"q{i}", "output": f"answer {i}"} for i in range(30)]
    few = [{**record, "output": f"class {i % 3}"} for i, record in enumerate(texts)]
    for name, made in (("texts", texts), ("few", few)):
        task_files(tmp_path, name, train=made[:20], dev=made[20:25], test=made[25:])
    free, classed = load_task(tmp_path, "texts"), load_task(tmp_path, "few")
    assert (free.metric, free.labels) == ("rougeL", None)
    assert free.notes == ("free-text answers: scored by Rouge-L",)
    assert (classed.metric, classed.labels) == ("accuracy", ("class 0", "class 1", "class 2"))
    assert classed.notes == ()


def test_where_trace_is_scored_otherwise_the_notes_say_so(tmp_path: Path) -> None:
    plain_task(tmp_path, "Py150")
    plain_task(tmp_path, "20Minuten")
    code, simple = load_task(tmp_path, "Py150"), load_task(tmp_path, "20Minuten")
    assert code.metric == "accuracy"
    assert "edit similarity" in code.notes[0]
    assert simple.metric == "rougeL"
    assert "SARI" in simple.notes[0]


def test_nothing_is_held_out_where_nothing_selects(tmp_path: Path) -> None:
    """The last state needs no dev records, so dev = test costs no training record."""
    rows = [{"id": str(i), "input": f"text {i}\nAnswer:", "output": "ab"[i % 2]} for i in range(40)]
    for split, part in (("train", rows[:20]), ("dev", rows[20:]), ("test", rows[20:])):
        folder = tmp_path / split
        folder.mkdir()
        (folder / "t_T5.json").write_text(json.dumps(part))
    one = Stream("custom", ("t",), "custom")
    _, (selecting,) = load_stream(tmp_path, one)
    _, (last,) = load_stream(tmp_path, one, selects=False)
    assert (len(selecting.train), len(selecting.dev)) == (18, 2)
    assert (len(last.train), len(last.dev)) == (20, 0)
    assert any("nothing selects" in note for note in last.notes)
    assert [r["id"] for r in last.test] == [r["id"] for r in selecting.test]
