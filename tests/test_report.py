"""The report: counted by hand, and each diagnosis where it belongs and nowhere else."""

from __future__ import annotations

import json

from aimmerge_fast.events import (
    Close,
    Event,
    Measure,
    Probe,
    Reject,
    Rollback,
    Skip,
    TaskEnd,
)
from aimmerge_fast.report import MergeReport, TaskReport, summarise
from tests.made_events import begin, merge, merges


def probe(step: int, S: int = 8, task: str = "a") -> Probe:
    return Probe(task, step, 1, S, 0, 0.5, None, "collect")


RUN: list[Event] = [
    begin("first", memory=0),
    TaskEnd("first", 100),
    begin("a"),
    *merge(1, 8, "due", learning_signal=3.0, cold=True),
    *merge(2, 24, "forced", learning_signal=2.0, alpha_new=1.0, alpha_past=0.0, cold=True),
    Skip("a", 25, 1, float("nan"), 1),
    *merge(3, 35, "deferred", learning_signal=1.0, alpha_new=0.0, alpha_past=1.0, next_S=16),
    *merge(4, 44, "early", learning_signal=4.0, S=16, next_S=10),
    *merge(5, 54, "due", learning_signal=6.0, S=10, next_S=6),
    Reject("a", 60, 5, "open", 3),
    Close("a", 60, 5),
    Rollback("a", 61),
    *merge(6, 70, "final", learning_signal=0.5, S=6, next_S=6),
    TaskEnd("a", 70),
]


def test_a_run_by_hand() -> None:
    report = summarise(RUN)
    assert report == MergeReport(
        (
            TaskReport(
                task="first",
                steps=100,
                first_step=1,
                merges={"early": 0, "due": 0, "deferred": 0, "forced": 0, "final": 0},
                no_op=0,
                discarding=0,
                rejected=0,
                skipped_probes=0,
                rollbacks=0,
                measures=0,
                s_low=None,
                s_high=None,
                s_last=None,
                signal_first=None,
                signal_last=None,
                diagnoses=(),
            ),
            TaskReport(
                task="a",
                steps=70,
                first_step=1,
                merges={"early": 1, "due": 2, "deferred": 1, "forced": 1, "final": 1},
                no_op=1,
                discarding=1,
                rejected=1,
                skipped_probes=1,
                rollbacks=1,
                measures=0,
                s_low=6,
                s_high=16,
                s_last=6,
                signal_first=2.5,  # (3 + 2 + 1 + 4) / 4
                signal_last=2.875,  # (1 + 4 + 6 + 0.5) / 4
                diagnoses=(),
            ),
        )
    )
    assert report.steps == 170
    assert report.count("no_op") == 1


def test_as_text() -> None:
    assert str(summarise(RUN)).splitlines() == [
        "task       steps  merges  early  due  deferred  forced  final  no-op  discarding",
        "first        100       0      0    0         0       0      0      0           0",
        "a             70       6      1    2         1       1      1      1           1",
        "all tasks    170       6      1    2         1       1      1      1           1",
        "no-op: alpha = (1, 0), the merge kept theta and moved the anchor only",
        "discarding: alpha = (0, 1), the merge dropped the progress since the last one",
        "a: S between 6 and 16, now 6; mean learning signal 2.5 (first 4 merges), "
        "2.875 (last 4 merges); rejected merges: 1; probes skipped as not finite: 1; roll-backs: 1",
    ]


def test_columns_of_what_never_happened_are_left_out() -> None:
    lines = str(summarise([begin(), *merges(2)])).splitlines()
    assert [line.split() for line in lines[:2]] == [
        ["task", "steps", "merges", "due"],
        ["a", "16", "2", "2"],
    ]
    assert lines[2:] == ["a: S 8 throughout; mean learning signal 1"]


def test_as_json() -> None:
    found = json.loads(json.dumps(summarise(RUN).to_dict(), allow_nan=False))
    assert found["total"] == {
        "steps": 170,
        "merges": {"early": 1, "due": 2, "deferred": 1, "forced": 1, "final": 1},
        **{"no_op": 1, "discarding": 1, "rejected": 1, "skipped_probes": 1},
        **{"rollbacks": 1, "measures": 0},
    }
    assert [task["task"] for task in found["tasks"]] == ["first", "a"]
    assert found["tasks"][1]["signal_last"] == 2.875


def test_no_merges_is_said() -> None:
    assert str(summarise([])) == "no merges yet: no task has begun"
    text = str(summarise([begin(), probe(1), probe(2)]))
    assert "no merges yet" in text.splitlines()
    assert "a: S 8 throughout" in text.splitlines()


def test_monitor_counts_its_measurements() -> None:
    events = [begin(schedule="monitor"), probe(10, S=10), Measure("a", 10, 10, 5.0, 0.5)]
    report = summarise(events)
    assert report.count("measures") == 1
    assert "no merges yet" in str(report)
    assert "measurements without a merge: 1" in str(report)


def test_a_merge_that_was_undone_is_not_counted() -> None:
    opened, closed = merge(1, 8)
    rejected = [begin(), opened, closed, Reject("a", 8, 1, "close", 2)]
    abandoned = [begin(), opened, Rollback("a", 8)]
    later = [begin(), opened, closed, Rollback("a", 9)]
    for events, made in ((rejected, 0), (abandoned, 0), (later, 1)):
        assert summarise(events).merges["due"] == made
    assert summarise(rejected).count("rejected") == 1


def test_a_resumed_run() -> None:
    steps = [probe(1), probe(2), *merge(1, 2), probe(3), probe(4), *merge(2, 4), probe(5)]
    # the same file goes on: saved after step 3, killed after step 5
    again = summarise([begin(), *steps, *steps[5:], TaskEnd("a", 5)])
    assert again == summarise([begin(), *steps, TaskEnd("a", 5)])
    assert again.merges["due"] == 2
    # saved before the next task began, killed inside it
    both = [begin(), *steps, TaskEnd("a", 5), begin("b"), probe(1, task="b"), TaskEnd("b", 1)]
    assert summarise([*both[:-1], *both[9:]]) == summarise(both)
    # a new merger's list of events begins inside the task
    [task] = summarise(steps[5:]).tasks
    assert (task.first_step, task.steps, task.merges["due"]) == (4, 5, 1)
    assert "resumed, counted from step 4 on" in str(summarise(steps[5:]))


def test_a_task_that_is_trained_again_is_counted_apart() -> None:
    again = [begin(), probe(7, S=5), *merge(1, 8)]
    report = summarise([begin(), *merge(1, 8), TaskEnd("a", 8), *again])
    assert [task.merges["due"] for task in report.tasks] == [1, 1]
    assert [task.s_low for task in report.tasks] == [8, 5]
