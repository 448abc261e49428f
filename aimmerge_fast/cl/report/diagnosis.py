"""What the controller did in one arm, in one sentence, and what its findings say to try."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from aimmerge_fast.cl.report.blocks import Block, Bullets, Paragraph, counted
from aimmerge_fast.cl.report.run import Arm, Run
from aimmerge_fast.cl.report.signals import drawn
from aimmerge_fast.events import TaskBegin
from aimmerge_fast.report import summarise

_MEANING = {
    "forced": "the history loss seldom passed its threshold",
    "early": "the history loss passed its threshold again and again before the interval was over",
    "due": "the history loss passed its threshold within the planned interval",
    "deferred": "the history loss passed its threshold only after the planned interval",
    "final": "they came at the end of a task, not from the signals",
}


def merge_report(arm: Arm) -> Mapping[str, Any] | None:
    """``MergeReport.to_dict()`` as the results have it, else from the arm's events."""
    return arm.merges or (summarise(arm.events).to_dict() if arm.events else None)


def diagnosis_blocks(run: Run) -> tuple[Block, ...]:
    """For each arm that merges: its sentence, then the findings by task."""
    items = []
    for group in run.groups:
        for arm in group.arms:
            report = merge_report(arm)
            if report is None or not (_merged(report) or arm.merging):
                continue
            seed = f", seed {arm.seed}" if len(group.arms) > 1 else ""
            items.append(f"{group.label}{seed}: {sentence(report, _adaptive(arm))}")
            items += [f"{group.label}{seed}, {finding}" for finding in _findings(report)]
    problems = [
        f"{group.label}: events cannot be read, figures and counts lack them ({problem})."
        for group in run.groups
        if (problem := drawn(group).events_problem)
    ]
    if not items and not problems:
        return (Paragraph("No arm of this run merges."),)
    return (Bullets((*items, *problems)),)


def sentence(report: Mapping[str, Any], adaptive: bool = True) -> str:
    """Merges by kind, no-op and discarding ones, range of S, and what most merges mean."""
    total = report["total"]
    by_kind = {kind: count for kind, count in total["merges"].items() if count}
    count = sum(by_kind.values())
    steps = sum(task["steps"] for task in report["tasks"] if task["s_last"] is not None)
    if not count:
        return f"no merge in {counted(steps, 'step')} with a memory."
    kinds = ", ".join(f"{n} {kind}" for kind, n in by_kind.items())
    parts = [f"{counted(count, 'merge')} in {counted(steps, 'step')} with a memory ({kinds})"]
    parts += list(_effects(total, count))
    low = [task["s_low"] for task in report["tasks"] if task["s_low"] is not None]
    high = [task["s_high"] for task in report["tasks"] if task["s_high"] is not None]
    if low and high:
        same = min(low) == max(high)
        parts.append(
            f"S {min(low)} throughout" if same else f"S between {min(low)} and {max(high)}"
        )
    most = max(by_kind, key=lambda kind: by_kind[kind])
    if adaptive and 2 * by_kind[most] > count:
        every = "all" if by_kind[most] == count else "most"
        parts.append(f"{every} of the merges were {most}: {_MEANING[most]}")
    return "; ".join(parts) + "."


def _effects(total: Mapping[str, Any], count: int) -> Iterator[str]:
    if total["no_op"]:
        yield f"{total['no_op']} of {count} no-op (α = (1, 0): the merge moved the anchor only)"
    if total["discarding"]:
        yield (
            f"{total['discarding']} of {count} discarding (α = (0, 1): the progress since the last "
            "merge was dropped)"
        )
    for name, what in (("rejected", "rejected"), ("rollbacks", "rolled back")):
        if total[name]:
            yield f"{total[name]} {what}"
    if total["skipped_probes"]:
        yield f"{counted(total['skipped_probes'], 'history loss', 'history losses')} not finite"


def _findings(report: Mapping[str, Any]) -> Iterator[str]:
    for task in report["tasks"]:
        for finding in task["diagnoses"]:
            yield f"{task['task']}: {finding}" + ("" if finding.endswith(".") else ".")


def _merged(report: Mapping[str, Any]) -> bool:
    return any(report["total"]["merges"].values())


def _adaptive(arm: Arm) -> bool:
    """Whether the kinds of its merges come from signals: not under a schedule by the calendar."""
    begins = [event for event in arm.events if isinstance(event, TaskBegin)]
    if not begins:
        return arm.method.startswith("aim")
    return all(event.config.get("schedule") == "adaptive" for event in begins)
