"""The report's numbers: tables against hand calculations, statistics against numpy."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from aimmerge_fast.cl.report import paper_table
from aimmerge_fast.cl.report.blocks import Table, number, signed
from aimmerge_fast.cl.report.diagnosis import sentence
from aimmerge_fast.cl.report.reading import parse_run
from aimmerge_fast.cl.report.run import Run
from aimmerge_fast.cl.report.signals import around_merges, stage_signals
from aimmerge_fast.cl.report.statistics import least_squares, mean_sd, pearson, pooled_sd
from aimmerge_fast.cl.report.tables import cost_table, kept_table, method_table
from aimmerge_fast.events import Close, Open, TaskBegin
from tests.cl.report_fixture import results

NAN = float("nan")


def run_of(**changes: Any) -> Run:
    return parse_run(results(**changes))


def texts(table: Table) -> list[list[str]]:
    return [[cell.text for cell in row] for row in table.rows]


def column(table: Table, name: str) -> dict[str, str]:
    place = table.columns.index(name)
    return {row[0].text: row[place].text for row in table.rows}


def test_kept_and_lost_of_one_seed() -> None:
    table = kept_table(run_of(seeds=(42,)))
    assert table.columns == ("task", "SeqLoRA", "LoRAReplay", "AIMMerging", "MTL")
    assert texts(table) == [
        [
            "dbpedia",
            *("83.0 → 59.5 (−23.5)", "83.0 → 67.5 (−15.5)", "83.0 → 75.5 (−7.5)", "84.0"),
        ],
        ["yahoo", "58.0 → 48.0 (−10.0)", "59.5 → 56.5 (−3.0)", "58.0 → 59.5 (+1.5)", "63.0"],
        ["agnews", "90.5", "86.0", "88.5", "89.0"],
        ["mean", "66.0 (−16.8)", "70.0 (−9.2)", "74.5 (−3.0)", "78.7"],
    ]


def test_best_final_scores_leave_out_the_bound_and_the_unfinished() -> None:
    run = run_of(seeds=(42,))
    marked = [[cell.best for cell in row[1:]] for row in kept_table(run).rows]
    assert marked == [
        [False, False, True, False],
        [False, False, True, False],  # 59.5 leads; MTL's 63.0 is a bound
        [True, False, False, False],
        [False, False, False, False],
    ]
    content = results(seeds=(42,))
    content["arms"][0]["finished"] = False
    rows = kept_table(parse_run(content)).rows
    assert [cell.best for cell in rows[2][1:]] == [False, False, True, False]


def test_kept_and_lost_over_seeds_has_the_deviation_of_the_change() -> None:
    content = results()
    content["arms"][4]["scores"][2][0] = 62.5  # seed 43: 84 -> 62.5 instead of 60.5
    table = kept_table(parse_run(content))
    # changes -23.5 and -21.5: mean -22.5, sample sd sqrt(2)
    assert column(table, "SeqLoRA")["dbpedia"] == "83.5 → 61.0 (−22.5 ± 1.4)"
    tones = [cell.tone for cell in table.rows[0][1:]]
    assert tones[0] == pytest.approx(-22.5 / 30)
    assert tones[3] is None


def test_an_unfinished_arm_shows_its_last_scores() -> None:
    content = results(seeds=(42,))
    content["arms"][2].update(finished=False, scores=content["arms"][2]["scores"][:2], metrics={})
    run = parse_run(content)
    assert column(kept_table(run), "AIMMerging") == {
        "dbpedia": "83.0 → 72.0 (−11.0)",
        "yahoo": "58.0",
        "agnews": "–",
        "mean": "–",
    }
    assert column(method_table(run), "state")["AIMMerging"] == "unfinished: 2 of 3 stages"
    assert column(method_table(run), "OP")["AIMMerging"] == "–"


def test_a_seed_that_is_behind_is_left_out_of_the_means() -> None:
    content = results()
    late = content["arms"][6]
    assert (late["name"], late["seed"]) == ("aim", 43)
    late.update(finished=False, scores=late["scores"][:1], metrics={})
    run = parse_run(content)
    table = method_table(run)
    assert column(table, "OP")["AIMMerging"] == "74.5"
    assert column(table, "seeds")["AIMMerging"] == "42"
    assert column(table, "state")["AIMMerging"] == "1 of 2 seeds finished"
    assert "AIMMerging: 1 of 2 seeds finished; left out of its means: seed 43, not as far." in (
        table.notes
    )
    assert "One seed, so no verdict: AIMMerging." in table.notes
    assert any(note.endswith("at least one of them: no verdict.") for note in table.notes)


def test_method_table_over_two_seeds() -> None:
    table = method_table(run_of())
    # OP differs by 1 between the seeds: sample sd of (x, x + 1) is sqrt(1/2)
    assert column(table, "OP") == {
        "SeqLoRA": "66.5 ± 0.7",
        "LoRAReplay": "70.5 ± 0.7",
        "AIMMerging": "75.0 ± 0.7",
        "MTL": "79.2 ± 0.7",
    }
    assert column(table, "BWT")["LoRAReplay"] == "−9.2 ± 0.0"
    assert column(table, "FWT")["MTL"] == "–"
    marked = {row[0].text: [cell.best for cell in row[2:5]] for row in table.rows}
    assert marked["AIMMerging"] == [True, False, True]
    assert marked["MTL"] == [False, False, False]


@pytest.mark.parametrize(
    ("replay", "aim", "verdict"),
    [
        ((70.0, 72.0), (70.5, 72.5), r"OP \+0\.5, .* 1\.4 \(2 and 2 seeds\): no difference"),
        ((70.0, 72.0), (75.0, 77.0), r"OP \+5\.0, .* 1\.4 .*: ahead by more than that"),
        ((70.0, 72.0), (64.0, 66.0), r"OP −6\.0, .* 1\.4 .*: behind by more than that"),
        ((70.0,), (75.0,), r"OP \+5\.0, on one seed .*: no verdict"),
    ],
)
def test_verdict_against_replay(
    replay: tuple[float, ...], aim: tuple[float, ...], verdict: str
) -> None:
    content = results(seeds=(42, 43)[: len(aim)], arms=("replay", "aim"))
    for name, values in (("replay", replay), ("aim", aim)):
        arms = [arm for arm in content["arms"] if arm["name"] == name]
        for arm, value in zip(arms, values, strict=True):
            arm["metrics"]["OP"] = value
    notes = method_table(parse_run(content)).notes
    found = [note for note in notes if note.startswith("AIMMerging against LoRAReplay")]
    assert len(found) == 1
    assert re.search(verdict, found[0])


def test_cost_table() -> None:
    table = cost_table(run_of())
    assert texts(table)[2] == [
        *("AIMMerging", "250.0", "1.25", "40.0", "2,880", "792", "1,920", "finished"),
    ]
    assert column(table, "÷ replay")["LoRAReplay"] == "1.00"
    alone = cost_table(run_of(arms=("aim",)))
    assert column(alone, "÷ replay") == {"AIMMerging": "–"}
    assert "No ratio: the run has no finished replay arm." in alone.notes


def test_every_table_names_the_part_of_the_order_and_the_records() -> None:
    run = run_of()
    blocks = [kept_table(run), method_table(run), cost_table(run)]
    blocks += [block for block in paper_table(run).blocks[:1] if isinstance(block, Table)]
    assert len(blocks) == 4
    for table in blocks:
        assert "Stream order1: 3 of 4 tasks." in table.notes
        assert any(
            note.startswith("dbpedia, yahoo: no test file: half of dev") for note in table.notes
        )


# ---- statistics ------------------------------------------------------------------------------


def test_statistics_agree_with_numpy() -> None:
    draw = np.random.default_rng(7)
    x, y = draw.normal(size=(2, 40))
    r, n = pearson(list(x), list(y))
    assert n == 40
    assert r == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-12)
    assert least_squares(list(x), list(y)) == pytest.approx(np.polyfit(x, y, 1), abs=1e-12)
    mean, sd = mean_sd(list(x))
    assert (mean, sd) == pytest.approx((x.mean(), x.std(ddof=1)), abs=1e-12)


def test_values_that_are_not_finite_are_no_samples() -> None:
    assert pearson([1, 2, NAN, 3], [2, 4, 9, 6]) == (pytest.approx(1.0), 3)
    assert least_squares([0, 1, 2, 3], [1, NAN, 5, 7]) == pytest.approx((2.0, 1.0))
    assert mean_sd([None, NAN, 3.0]) == (3.0, None)
    assert mean_sd([]) == (None, None)


@pytest.mark.parametrize(
    ("x", "y"), [([1, 2], [1, 2]), ([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [4, 4, 4]), ([], [])]
)
def test_no_correlation_of_too_few_or_constant_values(x: list[float], y: list[float]) -> None:
    assert pearson(x, y) == (None, len(x))


def test_pooled_deviation() -> None:
    first, second = [1.0, 2.0, 3.0], [10.0, 14.0]
    # ((3 - 1) * 1 + (2 - 1) * 8) / 3
    assert pooled_sd(first, second) == pytest.approx((10 / 3) ** 0.5)
    assert pooled_sd(first, [1.0]) is None


@pytest.mark.parametrize(
    ("value", "plain", "with_sign"),
    [(1.25, "1.2", "+1.2"), (-0.04, "−0.0", "0.0"), (0.0, "0.0", "0.0"), (-3.0, "−3.0", "−3.0")],
)
def test_numbers(value: float, plain: str, with_sign: str) -> None:
    assert (number(value), signed(value)) == (plain, with_sign)


# ---- the controller's sentence ---------------------------------------------------------------


def test_diagnosis_counts_and_what_most_merges_mean() -> None:
    kinds = {"early": 0, "due": 1, "deferred": 0, "forced": 5, "final": 0}
    counts = {"no_op": 4, "discarding": 1, "rejected": 2, "skipped_probes": 1, "rollbacks": 0}
    quiet = {"steps": 120, "s_last": None, "s_low": None, "s_high": None}
    task = {"steps": 60, "s_last": 8, "s_low": 2, "s_high": 16}
    report = {"tasks": [quiet, task], "total": {"steps": 180, "merges": kinds, **counts}}
    assert sentence(report) == (
        "6 merges in 60 steps with a memory (1 due, 5 forced); 4 of 6 no-op (α = (1, 0): the "
        "merge moved the anchor only); 1 of 6 discarding (α = (0, 1): the progress since the last "
        "merge was dropped); 2 rejected; 1 history loss not finite; S between 2 and 16; most of "
        "the merges were forced: the history loss seldom passed its threshold."
    )
    assert "most of" not in sentence(report, adaptive=False)


@pytest.mark.parametrize("entry_wise", [False, True])
def test_entry_wise_merges_moved_the_parameters(entry_wise: bool) -> None:
    """Recurrent-KIF and +IFM merge with alpha = (1, 0): their own weights say what moved."""
    fusion = {"fusion": {"quantile": 0.8}} if entry_wise else {}
    opened = Open("t", 2, 1, "merge_due", 2, 2, 0, 1.0, 0.5, 1.0, 0.0, 1, 2, 1, False, 0, 0, 0)
    events = [TaskBegin("t", 0, 8, fusion), opened, Close("t", 2, 1)]
    (stage,) = stage_signals(events, ["t"], {"t": (4.0, 3.0, 2.0, 1.0)})
    offsets, values, count = around_merges([stage], "training")
    assert count == int(entry_wise)
    assert values[offsets.index(1)] == ([2.0] if entry_wise else [])
