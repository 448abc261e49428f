"""A run beside the paper's tables."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from aimmerge_fast.cl.report import markdown_of, paper_table
from aimmerge_fast.cl.report.blocks import Table
from aimmerge_fast.cl.report.paper import names, paper
from tests.cl.report_fixture import results


def texts(table: Table) -> list[list[str]]:
    return [[cell.text for cell in row] for row in table.rows]


def column(table: Table, name: str) -> dict[str, str]:
    place = table.columns.index(name)
    return {row[0].text: row[place].text for row in table.rows}


def test_every_table_of_the_paper_can_be_shown() -> None:
    assert names() == (*(f"table{i}" for i in range(1, 10)), "table12")
    for which in names():
        text = markdown_of(paper_table(results(), which))
        assert f"Table {which[5:]} of arXiv 2509.17348" in text


def test_table_2_holds_paper_and_run_side_by_side() -> None:
    section = paper_table(results(), "table2")
    table, differs = section.blocks[:2]
    assert isinstance(table, Table)
    assert isinstance(differs, Table)
    rows = {row[0]: row[1:] for row in texts(table)}
    assert rows["AIMMerging"] == [
        *("78.1", "−1.5", "−0.4", "AIMMerging"),
        *("75.0 ± 0.7", "−3.0 ± 0.0", "−3.0 ± 0.0"),
    ]
    assert rows["Recurrent-KIF*"] == ["78.4", "−3.1", "−2.8", "–", "–", "–", "–"]
    found = {row[0]: row[1:] for row in texts(differs)}
    assert found["model"] == ["T5-large", "tiny-135m"]
    assert found["tasks"] == ["all of the order", "3 of 4 tasks"]
    assert found["seeds"] == ["3 runs", "2"]
    assert found["updates a task"] == ["10 epochs", "120 updates, 960 records"]
    assert "batch" not in found  # 8, as the paper


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        (["yahoo", "agnews", "dbpedia"], "Paper: Standard CL."),
        (["yelp", "agnews", "dbpedia"], "Paper: Long Sequence."),
        (["task363_sst2", "task875_emotion", "task181"], "Paper: SuperNI."),
        (["a", "b", "c"], "The run's tasks are of none of the paper's benchmarks."),
    ],
)
def test_a_custom_stream_is_held_against_the_benchmark_of_its_tasks(
    tasks: list[str], said: str
) -> None:
    content = results(arms=("aim",))
    content["stream"] = {"name": "custom", "tasks": tasks, "benchmark": "custom", "label": None}
    table = first_table(content, "table2")
    assert said in table.notes
    assert table.title.endswith("run: custom")


def test_paper_numbers_add_up() -> None:
    """The means that the paper's text draws from Table 2: AIMMerging 66.8, -0.5, -2.1."""
    blocks = paper()["tables"]["table2"]["blocks"]
    aim = np.mean([rows["AIMMerging"] for rows in blocks.values()], axis=0)
    kif = np.mean([rows["Recurrent-KIF"] for rows in blocks.values()], axis=0)
    np.testing.assert_allclose(aim, [66.767, -0.533, -2.067], atol=5e-4)
    np.testing.assert_allclose(kif, [66.5, -2.433, -4.933], atol=5e-4)
    lengths = [len(order["tasks"]) for order in paper()["table12"]["orders"].values()]
    assert lengths == [4, 4, 4, 15, 15, 15, 15]


def test_ablations_and_parameters_find_their_rows() -> None:
    content = results(seeds=(42,), arms=("aim",))
    base = content["arms"][0]
    content["arms"] += [
        copy.deepcopy(base) | {"name": "aim-ls", "method": "aim-ls", "label": "LS"},
        copy.deepcopy(base) | {"name": "aim-s_init=2", "settings": {"s_init": 2}, "label": "Two"},
        copy.deepcopy(base) | {"name": "given", "method": "tasl", "label": "TaSL"},
    ]
    content["arms"][-1]["memory_epochs"] = 2
    arms = {which: column(first_table(content, which), "arm") for which in ("table3", "table9")}
    assert arms["table3"]["- LS"] == "LS"
    assert arms["table9"]["TaSL"] == "TaSL (+memory)"
    by_value = column(first_table(content, "table8"), "arm")
    assert by_value["S_init = 2"] == "Two (s_init=2)"
    assert by_value["S_init = 8"] == by_value["F_max = 3"] == "AIMMerging"
    assert by_value["F_max = 2"] == "–"


def first_table(content: dict[str, Any], which: str) -> Table:
    table = paper_table(content, which).blocks[0]
    assert isinstance(table, Table)
    return table


def test_an_unknown_table_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"no table 'table10'.*table1, .*table12"):
        paper_table(results(), "table10")
