"""Arms told apart: labels, memory of their own, the recipe of Table 9, arms that failed."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from aimmerge_fast.cl.report import paper_table
from aimmerge_fast.cl.report.blocks import Table
from aimmerge_fast.cl.report.differences import differences_table
from aimmerge_fast.cl.report.paper import paper
from aimmerge_fast.cl.report.reading import parse_run
from aimmerge_fast.cl.report.signals import is_replay
from aimmerge_fast.cl.report.tables import cost_table, kept_table, method_table
from aimmerge_fast.cl.report.write import build
from tests.cl.report_fixture import LABELS, results


def run_with(*arms: dict[str, Any], seeds: tuple[int, ...] = (42,)) -> dict[str, Any]:
    """Results whose arms are those of the fixture, changed; each with all seeds."""
    content = results(seeds=seeds)
    of = {(arm["name"], arm["seed"]): arm for arm in content["arms"]}
    content["arms"] = [
        copy.deepcopy(of[arm["method"].partition("-")[0], seed]) | arm
        for arm in arms
        for seed in seeds
    ]
    return content


def arm(method: str, name: str = "", **fields: Any) -> dict[str, Any]:
    label = fields.pop("label", LABELS.get(method))
    return {"method": method, "name": name or method, "label": label, **fields}


def labels(*arms: dict[str, Any]) -> list[str]:
    return [group.label for group in parse_run(run_with(*arms)).groups]


def column(table: Table, name: str) -> dict[str, str]:
    place = table.columns.index(name)
    return {row[0].text: row[place].text for row in table.rows}


# ---- labels ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "label"),
    [
        (arm("aim"), "AIMMerging"),
        (arm("aim", "ours"), "AIMMerging"),
        (arm("aim", settings={"s_init": 2}), "AIMMerging (s_init=2)"),
        (arm("aim", "aim-x", settings={"s_min": 2, "f_max": 4}), "AIMMerging (s_min=2, f_max=4)"),
        (arm("aim-released", "released", label="AIMMerging (released)"), "AIMMerging (released)"),
        (
            arm("aim-released", label="AIMMerging (released)", settings={"s_init": 2}),
            "AIMMerging (released, s_init=2)",
        ),
        (arm("seqlora", memory_epochs=2), "SeqLoRA (+memory)"),
        (arm("seqlora", "seqlora+memory", memory_epochs=0), "SeqLoRA"),
        (arm("seqlora", memory_epochs=3), "SeqLoRA (+memory: 3 passes)"),
        (arm("replay", "replay-2%", memory_ratio=0.02), "LoRAReplay"),
        (arm("replay", "replay-10%", memory_ratio=0.1), "LoRAReplay (memory 10%)"),
        (
            arm("aim-fixed", label="fixed interval", settings={"counts": {"first": 8}}),
            "fixed interval (merges matched)",
        ),
    ],
)
def test_a_label_is_the_method_and_its_settings(one: dict[str, Any], label: str) -> None:
    assert labels(one) == [label]


def test_names_tell_apart_what_settings_do_not() -> None:
    same = [arm("aim", "first"), arm("aim", "second"), arm("aim", settings={"s_init": 2})]
    assert labels(*same) == [
        *("AIMMerging (first)", "AIMMerging (second)", "AIMMerging (s_init=2)"),
    ]


def test_settings_that_differ_between_seeds_are_not_in_the_label() -> None:
    content = run_with(arm("aim", settings={"match": "aim"}), seeds=(42, 43))
    for interval, one in enumerate(content["arms"], start=7):
        one["settings"] = {**one["settings"], "interval": interval}
    assert [group.label for group in parse_run(content).groups] == ["AIMMerging (match=aim)"]


# ---- memory ----------------------------------------------------------------------------------


def sizes(*ratios: float) -> list[dict[str, Any]]:
    """Arms as the preset of Table 5 names them."""
    return [
        arm(method, f"{method}-{ratio}", memory_ratio=ratio)
        for method in ("replay", "aim")
        for ratio in ratios
    ]


def test_memory_of_an_arm_is_its_own_else_the_runs() -> None:
    content = run_with(arm("replay"), arm("aim", memory_ratio=0.5, memory_epochs=2))
    content["settings"]["memory_ratio"] = 0.1
    found = [(one.memory_ratio, one.memory_epochs) for one in parse_run(content).arms]
    assert found == [(0.1, 0), (0.5, 2)]
    content["arms"][0]["memory_ratio"] = "2%"
    with pytest.raises(ValueError, match=r"arms\[0\]: field 'memory_ratio' must be a number"):
        parse_run(content)


def test_table_5_matches_each_arm_by_its_memory() -> None:
    section = paper_table(run_with(*sizes(0.02, 0.1, 0.07)), "table5")
    table, differs = section.blocks[:2]
    assert isinstance(table, Table)
    assert isinstance(differs, Table)
    found = column(table, "arm")
    assert found["LoRAReplay, 2%"] == "LoRAReplay"
    assert found["AIMMerging, 10%"] == "AIMMerging (memory 10%)"
    assert found["AIMMerging, 5%"] == found["LoRAReplay, 50%"] == "–"
    assert column(table, "paper OP")["AIMMerging, 10%"] == "78.3"
    shown = [row[2].text for row in table.rows if row[0].text == "–"]
    assert shown == ["LoRAReplay (memory 7%)", "AIMMerging (memory 7%)"]
    assert column(differs, "this run")["memory"] == "2% or 7% or 10% of each task"


@pytest.mark.parametrize(
    ("which", "said"), [("table2", "2% or 10% of each task"), ("table5", None)]
)
def test_memory_differs_where_the_table_has_it_not(which: str, said: str | None) -> None:
    run = parse_run(run_with(*sizes(0.02, 0.1)))
    found = column(differences_table(run, which, paper()), "this run")
    assert found.get("memory") == said


def test_verdicts_pair_arms_of_the_same_memory() -> None:
    notes = method_table(parse_run(run_with(*sizes(0.1, 0.5), seeds=(42, 43)))).notes
    pairs = [note.partition(": OP")[0] for note in notes if " against " in note]
    assert pairs == [
        f"AIMMerging (memory {size}) against LoRAReplay (memory {size})" for size in ("10%", "50%")
    ]


def test_no_verdict_against_replay_of_another_memory() -> None:
    run = parse_run(run_with(arm("replay"), arm("aim", memory_ratio=0.5)))
    notes = method_table(run).notes
    assert not any(" against " in note for note in notes)
    assert (
        "AIMMerging (memory 50%): no finished replay arm has its memory (50%), no verdict." in notes
    )


def test_the_cost_is_of_replay_with_the_runs_memory() -> None:
    content = run_with(*sizes(0.1, 0.02))
    content["arms"][0]["seconds"] = {"training": 400.0}
    table = cost_table(parse_run(content))
    assert column(table, "÷ replay")["LoRAReplay"] == "1.00"
    assert column(table, "÷ replay")["LoRAReplay (memory 10%)"] == "2.00"
    assert "÷ replay: of LoRAReplay." in table.notes


def test_the_cost_table_says_where_replays_memory_rows_are() -> None:
    (note,) = (n for n in cost_table(parse_run(results())).notes if "rehearses" in n)
    assert "among its rows trained, not among the rows rehearsed" in note


def test_the_recipe_is_read_from_its_passes_not_from_the_name() -> None:
    content = run_with(
        arm("replay", "replay with+memory"),
        arm("replay", "again", memory_epochs=2),
        arm("seqlora", "tasl", label="TaSL", memory_epochs=2),
    )
    content["arms"][2]["method"] = "tasl"  # the fixture has no scores of it
    run = parse_run(content)
    assert [is_replay(group) for group in run.groups] == [True, False, False]
    table = paper_table(run, "table9").blocks[0]
    assert isinstance(table, Table)
    assert column(table, "arm")["TaSL"] == "TaSL (+memory)"
    assert column(table, "arm")["Replay"] == "LoRAReplay"


# ---- arms that failed ------------------------------------------------------------------------


REASON = "OutOfMemoryError: out of memory\n  while the third task was trained, at a batch of 32"


def fail(one: dict[str, Any], reason: str = REASON) -> None:
    # an OP that must not be shown
    one.update(finished=False, failed=reason, scores=one["scores"][:2], metrics={"OP": 12.3})


def test_an_arm_that_failed_says_so_and_has_no_op() -> None:
    content = results(seeds=(42,))
    fail(content["arms"][2])
    run = parse_run(content)
    table = method_table(run)
    state = column(table, "state")["AIMMerging"]
    assert state.startswith("failed: OutOfMemoryError: out of memory while the third")
    assert len(state) <= 70
    assert state.endswith("…")
    assert column(table, "OP")["AIMMerging"] == "–"
    assert column(kept_table(run), "AIMMerging")["mean"] == "–"
    assert f"AIMMerging: {state}; its numbers are those after its last stage." in table.notes
    assert not any(" against " in note for note in table.notes)
    facts = build(run).sections[0].blocks[0].items  # type: ignore[union-attr]
    wanted = f"Failed after 2 of 3 stages: AIMMerging, seed 42: {' '.join(REASON.split())}"
    assert wanted in facts


def test_a_failed_seed_beside_a_finished_one() -> None:
    content = results()
    fail(content["arms"][6], "killed")
    table = method_table(parse_run(content))
    assert column(table, "state")["AIMMerging"] == (
        "1 of 2 seeds finished, 1 of 2 seeds failed: killed"
    )
    assert column(table, "OP")["AIMMerging"] == "74.5"


def test_a_finished_arm_has_not_failed() -> None:
    content = results(seeds=(42,), arms=("aim",))
    content["arms"][0]["failed"] = "before it was resumed"
    assert [group.state for group in parse_run(content).groups] == ["finished"]
