"""The sentences that stand under tables: which tasks, which records, how many seeds."""

from __future__ import annotations

from collections.abc import Iterator

from aimmerge_fast.cl.report.blocks import counted
from aimmerge_fast.cl.report.run import Group, Run

#: Methods that see all tasks at once: a bound, no competitor.
BOUNDS = ("mtl",)


def stream_title(run: Run) -> str:
    """``order4 (Long Sequence), 9 of 15 tasks``."""
    name, label = stream_name(run), run.stream.get("label")
    benchmark = run.stream.get("benchmark", name)
    return (name if benchmark == name else f"{name} ({benchmark})") + (
        f", {label}" if label else ""
    )


def stream_name(run: Run) -> str:
    return str(run.stream.get("name", "custom"))


def task_notes(run: Run) -> tuple[str, ...]:
    """What every table must say of its tasks: how many of the order's, splits, known defects."""
    label = run.stream.get("label") or counted(len(run.names), "task")
    return (f"Stream {stream_name(run)}: {label}.", *_grouped(run))


def _grouped(run: Run) -> Iterator[str]:
    """Notes of the tasks; one that several share is said once."""
    tasks_of: dict[str, list[str]] = {}
    for task in run.names:
        for note in run.tasks.get(task, {}).get("notes") or ():
            tasks_of.setdefault(str(note), []).append(task)
    for note, tasks in tasks_of.items():
        sentence = note if note.endswith((".", "!", "?")) else f"{note}."
        # the loaders' notes may begin with their task's name already
        named = len(tasks) == 1 and note.startswith(f"{tasks[0]}:")
        yield sentence if named else f"{', '.join(tasks)}: {sentence}"


def seed_notes(run: Run) -> Iterator[str]:
    """Over which seeds means are taken, and which arms are not finished."""
    for group in run.groups:
        if len(group.used) < len(group.arms):
            left = [str(arm.seed) for arm in group.arms if arm not in group.used]
            yield (
                f"{group.label}: {group.state}; left out of its means: seed {', '.join(left)}, "
                "not as far."
            )
        elif not group.finished:
            state = f": {group.state}" if group.failed else f" is {group.state}"
            yield f"{group.label}{state}; its numbers are those after its last stage."
    single = [group.label for group in run.groups if len(group.used) == 1]
    if len(single) == len(run.groups):
        yield "One seed: differences between arms are no verdict."
    elif single:
        yield f"One seed, so no verdict: {', '.join(single)}."
    many = sorted({len(group.used) for group in run.groups if len(group.used) > 1})
    if many:
        yield f"± is the sample standard deviation over {' or '.join(map(str, many))} seeds."


def metric_note(run: Run) -> str:
    """What a score is."""
    metrics = {str(run.tasks.get(name, {}).get("metric", "")) for name in run.names}
    words = {"accuracy": "exact-match accuracy", "rougeL": "Rouge-L F (stemmed) times 100"}
    named = [words.get(metric, metric) for metric in sorted(metrics) if metric]
    return f"Scores in %: {' or '.join(named)}." if named else "Scores from 0 to 100."


def is_bound(group: Group) -> bool:
    return group.method in BOUNDS
