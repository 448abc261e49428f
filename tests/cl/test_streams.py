"""Task orders against Table 12 as printed, aliases, lists, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from aimmerge_fast.cl.streams import KNOWN_TASKS, ORDERS, Stream, stream, task_name
from tests.cl.task_files import plain_task

PRINTED = {  # Table 12, its short names
    "order1": "dbpedia amazon yahoo ag",
    "order2": "dbpedia amazon ag yahoo",
    "order3": "yahoo amazon ag dbpedia",
    "order4": "mnli cb wic copa qqp boolqa rte imdb yelp amazon sst-2 dbpedia ag multirc yahoo",
    "order5": "yelp amazon mnli cb copa qqp rte imdb sst-2 dbpedia ag yahoo multirc boolqa wic",
    "order6": "1572 363 1290 181 002 1510 639 1729 073 1590 748 511 591 1687 875",
    "order7": "748 073 1590 639 1572 1687 591 363 1510 1729 181 511 002 1290 875",
}


@pytest.mark.parametrize("name", PRINTED)
def test_the_orders_are_those_of_the_paper(name: str) -> None:
    printed = [t if not t.isdigit() else f"task{t}" for t in PRINTED[name].split()]
    assert list(stream(name).tasks) == ["agnews" if t == "ag" else t for t in printed]


def test_benchmarks_and_sizes() -> None:
    kinds = {name: (order.benchmark, len(order.tasks)) for name, order in ORDERS.items()}
    assert kinds == {
        **dict.fromkeys(("order1", "order2", "order3"), ("Standard CL", 4)),
        **dict.fromkeys(("order4", "order5", "order15b"), ("Long Sequence", 15)),
        **dict.fromkeys(("order6", "order7"), ("SuperNI", 15)),
        "cross19": ("19 tasks", 19),
        "trace": ("TRACE", 8),
    }
    for order in ORDERS.values():
        assert len(set(order.tasks)) == len(order.tasks)
    assert {*ORDERS["order4"].tasks} == {*ORDERS["order5"].tasks} == {*ORDERS["order15b"].tasks}
    assert {*ORDERS["order6"].tasks} == {*ORDERS["order7"].tasks}


def test_the_19_tasks_are_order_1_then_order_6() -> None:
    assert stream("cross19").tasks == stream("order1").tasks + stream("order6").tasks


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("ag", "agnews"),
        ("AG_News", "agnews"),
        ("sst2", "sst-2"),
        ("SST-2", "sst-2"),
        ("boolq", "boolqa"),
        ("BoolQA", "boolqa"),
        ("dbpedia_14", "dbpedia"),
        ("yahoo_answers_topics", "yahoo"),
        ("MultiRC", "multirc"),
        ("task73", "task073"),
        ("task073_commonsenseqa_answer_generation", "task073"),
        ("task1687_sentiment140_classification", "task1687"),
        ("c-stance", "C-STANCE"),
        ("numglue_cm", "NumGLUE-cm"),
        ("of my own", "of my own"),
    ],
)
def test_aliases(text: str, name: str) -> None:
    assert task_name(text) == name


@pytest.mark.parametrize("text", ["order4", "Order 4", "order-4", "4", "dataset_id=1"])
def test_orders_by_any_spelling(text: str) -> None:
    assert stream(text) is ORDERS["order4"]


def test_lists() -> None:
    assert stream("dbpedia, yahoo,ag") == Stream("custom", ("dbpedia", "yahoo", "agnews"), "custom")
    assert stream(["sst2"]).tasks == ("sst-2",)
    # spelled out, an order keeps its name in tables
    assert stream(["dbpedia", "amazon", "yahoo", "ag"]) is ORDERS["order1"]


def test_titles() -> None:
    assert stream("order4").title == "order4 (Long Sequence)"
    part = Stream("order4", ("cb",), "Long Sequence", "1 of 15 tasks")
    assert part.title == "order4 (Long Sequence), 1 of 15 tasks"
    assert stream("cb").title == "custom"


def test_a_folder_makes_its_tasks_known(tmp_path: Path) -> None:
    for task in ("zebra", "agnews", "apple"):
        plain_task(tmp_path, task)
    assert stream("all", folder=tmp_path).tasks == ("agnews", "apple", "zebra")
    assert stream("zebra,ag", folder=tmp_path).tasks == ("zebra", "agnews")
    with pytest.raises(ValueError, match="'zebra' is not known"):
        stream("zebra")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("order9", r"order or task 'order9' is not known \(closest: order\d\)"),
        ("dbpedia,yaho", r"task 'yaho' is not known \(closest: yahoo\)"),
        ("qqqqqqqqq", r"'qqqqqqqqq' is not known; known orders: order1, .*known tasks: dbpedia"),
        ("ag,dbpedia,agnews", "names agnews more than once"),
        ("", "names no task"),
        (" , ", "names no task"),
        ("all", "give the folder"),
    ],
)
def test_refused(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stream(spec)


def test_an_unknown_task_lists_those_of_the_folder(tmp_path: Path) -> None:
    plain_task(tmp_path, "zebra")
    with pytest.raises(ValueError, match=r"closest: zebra.*in this folder: zebra"):
        stream("zebr", folder=tmp_path)
    assert "multirc" in KNOWN_TASKS


def test_all_of_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no task files"):
        stream("all", folder=tmp_path)
