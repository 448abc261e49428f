"""The tables of a report: kept and lost, methods, cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from aimmerge_fast.cl.report.blocks import NONE, Cell, Table, cells, counted, number, signed, spread
from aimmerge_fast.cl.report.notes import is_bound, metric_note, seed_notes, task_notes
from aimmerge_fast.cl.report.run import Group, Run, percent
from aimmerge_fast.cl.report.scores import KeptMean, best, kept_mean, metric, metric_values
from aimmerge_fast.cl.report.signals import OURS, finished_replays, same_memory
from aimmerge_fast.cl.report.statistics import FEWEST, mean, pooled_sd

if TYPE_CHECKING:
    from aimmerge_fast.cl.report.figures_compare import Cloud, Trend

METRICS = ("OP", "FWT", "BWT")
#: A change of so many points has the full tone.
_FULL_TONE = 30.0


def kept_table(run: Run) -> Table:
    """Per task and arm: score when learned, final score, change."""
    rows = []
    for place, task in enumerate(run.names):
        found = [kept_mean(group, task, place) for group in run.groups]
        leading = best([_competing(g, k) for g, k in zip(run.groups, found, strict=True)])
        row = [_kept_cell(one, i in leading) for i, one in enumerate(found)]
        rows.append((Cell(task), *row))
    rows.append((Cell("mean"), *(_mean_cell(run, group) for group in run.groups)))
    return Table(
        title="Kept and lost",
        columns=("task", *(group.label for group in run.groups)),
        rows=tuple(rows),
        notes=(
            "Score when learned → final score (change); one number where nothing was trained in "
            "between. The best final score of a task is marked. Last row: mean of the final scores "
            "(of the changes).",
            metric_note(run),
            *seed_notes(run),
            *task_notes(run),
        ),
    )


def _competing(group: Group, found: KeptMean) -> float | None:
    return found.final if group.finished and not is_bound(group) else None


def _kept_cell(found: KeptMean, is_best: bool) -> Cell:
    if found.change is None:
        if found.learned is not None and found.final is None:
            return Cell(f"{number(found.learned)} → {NONE}")
        return Cell(number(found.final), best=is_best)
    change = signed(found.change) + ("" if found.sd is None else f" ± {found.sd:.1f}")
    tone = max(-1.0, min(1.0, found.change / _FULL_TONE))
    text = f"{number(found.learned)} → {number(found.final)} ({change})"
    return Cell(text, best=is_best, tone=tone)


def _mean_cell(run: Run, group: Group) -> Cell:
    found = [kept_mean(group, task, place) for place, task in enumerate(run.names)]
    finals = [one.final for one in found]
    if not group.finished or any(final is None for final in finals):
        return Cell(NONE)
    change = mean(one.change for one in found)
    return Cell(number(mean(finals)) + ("" if change is None else f" ({signed(change)})"))


def method_table(run: Run) -> Table:
    """In the shape of the paper's Table 2: OP, FWT, BWT, mean ± sd over seeds."""
    competing = [group.finished and not is_bound(group) for group in run.groups]
    leading = {}
    for name in METRICS:
        means = [metric(group, name)[0] for group in run.groups]
        leading[name] = best([m if c else None for m, c in zip(means, competing, strict=True)])
    rows = tuple(
        (
            Cell(group.label),
            Cell(", ".join(str(arm.seed) for arm in group.used)),
            *(Cell(spread(*metric(group, n)), best=i in leading[n]) for n in METRICS),
            Cell(group.state),
        )
        for i, group in enumerate(run.groups)
    )
    return Table(
        title="Methods",
        columns=("method", "seeds", *METRICS, "state"),
        rows=rows,
        notes=(
            "OP: mean final score. FWT: mean of score when learned less the score of training on "
            "that task alone. BWT: mean change since learned, last task excluded (all as the "
            f"authors' code, in points). {NONE}: not defined, or not measured (FWT needs "
            "single-task scores). The best is marked.",
            *verdicts(run),
            *seed_notes(run),
            *task_notes(run),
        ),
    )


def verdicts(run: Run) -> Iterator[str]:
    """Each AIM arm against replay with the same memory, in OP; needs two seeds of both."""
    replays = finished_replays(run)
    for group in run.groups if replays else ():
        if group.method not in OURS or not group.finished:
            continue
        like = next((replay for replay in replays if same_memory(replay, group)), None)
        if like is not None:
            yield from _verdict(group, like)
        else:
            memory = percent(group.memory_ratio)
            yield f"{group.label}: no finished replay arm has its memory ({memory}), no verdict."


def _verdict(group: Group, replay: Group) -> Iterator[str]:
    ours, theirs = metric_values(group, "OP"), metric_values(replay, "OP")
    lead = (mean(ours) or 0.0) - (mean(theirs) or 0.0)
    if not ours or not theirs:
        return
    sentence = f"{group.label} against {replay.label}: OP {signed(lead)}"
    sd = pooled_sd(ours, theirs)
    if sd is None:
        yield f"{sentence}, on one seed of at least one of them: no verdict."
        return
    within = abs(lead) <= sd
    side = "behind" if lead < 0 else "ahead"
    meaning = "no difference beyond the seeds'" if within else f"{side} by more than that"
    yield (
        f"{sentence}, pooled standard deviation {sd:.1f} ({len(ours)} and {len(theirs)} seeds): "
        f"{meaning}."
    )


def cost_table(run: Run) -> Table:
    """In the shape of the paper's Table 6: time of training, and what it is of replay's."""
    replays = finished_replays(run)
    base = _seconds(replays[0], "training") if replays else None
    return Table(
        title="Cost",
        columns=(
            *("method", "training, s", "÷ replay", "evaluation, s"),
            *("rows trained", "rows rehearsed", "rows probed", "state"),
        ),
        rows=tuple(_cost_row(group, base) for group in run.groups),
        notes=(
            "Means over the seeds. Rows are records that went through the model in training, in "
            "memory steps (of merges, or passes after a task), and in history losses (forward "
            "only). Seconds are wall clock; arms that ran side by side shared the machine.",
            "Replay rehearses within training: its records from the memory are among its rows "
            "trained, not among the rows rehearsed.",
            *([f"÷ replay: of {replays[0].label}."] if len(replays) > 1 else []),
            *([] if base else ["No ratio: the run has no finished replay arm."]),
            f"Machine: {machine(run)}.",
            *seed_notes(run),
            *task_notes(run),
        ),
    )


def _cost_row(group: Group, base: float | None) -> tuple[Cell, ...]:
    training = _seconds(group, "training")
    comparable = group.finished and base and training is not None
    rows = [mean(arm.rows.get(name) for arm in group.used) for name in ("training", "memory")]
    rows.append(mean(arm.rows.get("probe") for arm in group.used))
    return cells(
        (
            group.label,
            number(training),
            number(training / base, 2) if comparable and base and training is not None else NONE,
            number(_seconds(group, "evaluation")),
            *(NONE if count is None else f"{count:,.0f}" for count in rows),
            group.state,
        )
    )


def _seconds(group: Group, name: str) -> float | None:
    return mean(arm.seconds.get(name) for arm in group.used)


def machine(run: Run) -> str:
    """CPU, cores, threads and device as far as they are known."""
    known = run.machine
    parts = [str(known[key]) for key in ("device", "cpu") if known.get(key)]
    for key in ("core", "thread"):
        if known.get(f"{key}s") is not None:
            parts.append(counted(int(known[f"{key}s"]), key))
    return ", ".join(parts) or "not recorded"


def trend_table(run: Run, found: Sequence[Trend]) -> Table:
    """Mean history loss by task and arm, and the slope of its line of least squares."""
    rows = []
    for trend in found:
        slope = None if trend.line is None else 100 * trend.line[0]
        rows.append(cells((trend.task, trend.group.label, number(trend.mean, 3), signed(slope, 4))))
    return Table(
        title="Trend of the history loss",
        columns=("task", "arm", "mean, nats per token", "slope per 100 steps"),
        rows=tuple(rows),
        notes=("One seed of each arm.", *task_notes(run)),
    )


def signal_table(run: Run, found: Sequence[Cloud]) -> Table:
    """Pearson correlation of a task's signals with its score when learned."""
    rows = []
    for cloud in found:
        r, n = cloud.correlation
        rows.append(cells((cloud.group.label, cloud.signal, number(r, 3), str(n))))
    return Table(
        title="Correlation with the score when learned",
        columns=("arm", "signal", "Pearson r", "n"),
        rows=tuple(rows),
        notes=(
            f"n: tasks times seeds. No correlation below {FEWEST} points or where one side is "
            "constant; a handful of tasks shows no law.",
            *task_notes(run),
        ),
    )


def without_task_notes(run: Run, table: Table) -> Table:
    """For a screen, where the table below says the same."""
    left_out = {*task_notes(run), *seed_notes(run)}
    notes = tuple(note for note in table.notes if note not in left_out)
    return dataclasses.replace(table, notes=notes)
