"""A run beside the paper's numbers (arXiv 2509.17348, Tables 1 to 9 and 12)."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from typing import Any

from aimmerge_fast.cl.report.blocks import (
    NONE,
    Bullets,
    Cell,
    Section,
    Table,
    cells,
    number,
    spread,
)
from aimmerge_fast.cl.report.differences import differences_table
from aimmerge_fast.cl.report.notes import seed_notes, stream_title, task_notes
from aimmerge_fast.cl.report.reading import parse_run
from aimmerge_fast.cl.report.run import Group, Run, percent
from aimmerge_fast.cl.report.scores import metric
from aimmerge_fast.cl.report.signals import finished_replays
from aimmerge_fast.cl.report.statistics import mean

Matcher = Callable[[Group], bool]


@functools.cache
def paper() -> Mapping[str, Any]:
    """The numbers: ``tables`` by name, each with blocks of rows; ``table12``; ``setup``."""
    text = files("aimmerge_fast.cl.report").joinpath("paper.json").read_text(encoding="utf-8")
    return json.loads(text)  # type: ignore[no-any-return]


def names() -> tuple[str, ...]:
    return (*paper()["tables"], "table12")


def paper_table(results: Mapping[str, Any] | Run, which: str = "table2") -> Section:
    """The run's rows beside those of a table of the paper, and what the two do not share.

    Args:
        results: what ``results.json`` holds. which: "table1" ... "table9", "table12".

    Raises:
        ValueError: an unknown table, or results of another version.
    """
    run = results if isinstance(results, Run) else parse_run(results)
    if which not in names():
        raise ValueError(f"no table {which!r} of the paper; there are {', '.join(names())}")
    title = f"{which.replace('table', 'Table ')} of arXiv 2509.17348 and this run"
    if which == "table12":
        return Section(title, (_orders(run),))
    found = paper()["tables"][which]
    notes = (*seed_notes(run), *task_notes(run))
    table = _cost(run, found, notes) if which == "table6" else _scores(run, which, found, notes)
    return Section(title, (table, differences_table(run, which, paper()), *_unfinished(run)))


def _scores(run: Run, which: str, found: Mapping[str, Any], notes: tuple[str, ...]) -> Table:
    """Paper's rows in their order, each with the arms that are it; then the arms it has not."""
    metrics = found["metrics"]
    rows: list[tuple[Cell, ...]] = []
    matched: set[str] = set()
    blocks = _blocks(run, which, found["blocks"])
    for block, paper_rows in blocks.items():
        for row, values in paper_rows.items():
            name = _ROWS.get(which, "{row}").format(block=block, row=row)
            name += "*" if row in found.get("copied", ()) else ""
            groups = [g for g in run.groups if _matcher(which, block, row)(g)]
            matched |= {group.name for group in groups}
            rows += [_row(name, values, group, metrics) for group in _or_none(groups)]
    for group in run.groups:
        if group.name not in matched:
            rows.append(_row(NONE, [None] * len(metrics), group, metrics))
    columns = (*(f"paper {name}" for name in metrics), "arm", *(f"run {name}" for name in metrics))
    said: list[str] = [] if which in _ROWS else [f"Paper: {block}." for block in blocks if block]
    if which == "table2" and not _shares_tasks(run, benchmark(run)):
        said.append("The run's tasks are of none of the paper's benchmarks.")
    if found.get("copied"):
        said.append("*: copied by the paper from other papers.")
    caption = f"{found['caption']}; run: {stream_title(run)}"
    return Table(caption, ("paper row", *columns), tuple(rows), (*said, *notes))


def _row(name: str, values: list[float | None], group: Group | None, metrics: list[str]) -> Any:
    run_side = [NONE] * (1 + len(metrics))
    if group is not None:
        run_side = [group.label, *(spread(*metric(group, one)) for one in metrics)]
    return cells((name, *(number(value) for value in values), *run_side))


def _or_none(groups: Sequence[Group]) -> Sequence[Group | None]:
    """A row of the paper stands in the table also where the run has no such arm."""
    return groups or [None]


def _blocks(run: Run, which: str, blocks: Mapping[str, Any]) -> Mapping[str, Any]:
    """The blocks of a table that the run is to be held against."""
    if which == "table2":
        name = benchmark(run)
        return {name: blocks[name]}
    return blocks


def benchmark(run: Run) -> str:
    """The paper's benchmark of the run, for a custom stream the first that has its tasks."""
    known: list[str] = list(paper()["tables"]["table2"]["blocks"])
    if run.stream.get("benchmark") in known:
        return str(run.stream["benchmark"])
    return next((name for name in known if _shares_tasks(run, name)), known[0])


def _shares_tasks(run: Run, name: str) -> bool:
    """Whether every task of the run is one of a benchmark's."""
    tasks = {short_name(task) for task in run.names}
    orders = paper()["table12"]["orders"].values()
    return any(o["benchmark"] == name and tasks <= set(o["tasks"]) for o in orders)


def short_name(task: str) -> str:
    """A task as the orders call it: ``task363`` for ``task363_sst2_polarity_classification``."""
    return task.partition("_")[0] if task.startswith("task") else task


#: Tables whose blocks stand in one table, and how its rows are called.
_ROWS = {"table5": "{row}, {block}", "table8": "{block} = {row}"}
_METHODS = {
    "seqlora": ("SeqLoRA",),
    "inclora": ("IncLoRA",),
    "replay": ("LoRAReplay", "Replay"),
    "kif": ("Recurrent-KIF",),
    "tasl": ("TaSL",),
    "aim": ("AIMMerging",),
    "aim-released": ("AIMMerging",),
    "mtl": ("MTL", "Multi-task Learning"),
    "aim-ls": ("- LS",),
    "aim-fs": ("- FS",),
    "aim-mgm": ("+ MGM",),
    "aim-ifm": ("+ IFM",),
    "fixed": ("Fix Interval",),
}
_SCHEDULES = {"Slow Convergence Phase +": "slow+", "Rapid Learning Phase +": "rapid+"}
_PARAMETERS: dict[str, dict[str, Any]] = {
    "S_init": {"s_init": 8},
    "L_w": {"window": 3},
    "S_min,S_max": {"s_min": 2, "s_max": 128},
    "gamma_forget": {"gamma_forget": 2},
    "F_max": {"f_max": 3},
}


def _matcher(which: str, block: str, row: str) -> Matcher:
    """Whether an arm is what a row of the paper's table is."""
    if which == "table8":
        return lambda group: _has_parameter(group, block, row)
    if which == "table4":  # the run's target modules are one setting: see the differences
        return lambda group: group.method == "aim" and row == "Attention Q V"
    if row in _SCHEDULES:
        return lambda group: group.arms[0].settings.get("schedule") == _SCHEDULES[row]
    recipe = which == "table9" and row not in ("Replay", "AIMMerging")
    return lambda group: (
        row in _METHODS.get(group.method, ())
        and (group.memory_epochs > 0) == recipe
        and (which != "table5" or percent(group.memory_ratio) == block)
        and "schedule" not in group.arms[0].settings
    )


def _has_parameter(group: Group, name: str, value: str) -> bool:
    """Whether the arm is AIMMerging with this value, and the paper's for all else."""
    if group.method != "aim" or group.memory_epochs:
        return False
    defaults = {key: v for values in _PARAMETERS.values() for key, v in values.items()}
    wanted = defaults | dict(zip(_PARAMETERS[name], map(float, value.split(",")), strict=True))
    settings = group.arms[0].settings
    return all(settings.get(key, default) == wanted[key] for key, default in defaults.items())


def _cost(run: Run, found: Mapping[str, Any], notes: tuple[str, ...]) -> Table:
    """Training time as a multiple of replay's: the paper's four models, and the run."""
    models = list(found["blocks"])
    replays = finished_replays(run)
    base = mean(arm.seconds.get("training") for arm in replays[0].used) if replays else None
    rows = []
    for row in found["blocks"][models[0]]:
        of_paper = [
            number(found["blocks"][m][row][0] / found["blocks"][m]["LoRAReplay"][0], 2)
            for m in models
        ]
        groups = [g for g in run.groups if row in _METHODS.get(g.method, ()) and g.finished]
        for group in _or_none(groups):
            own = mean(a.seconds.get("training") for a in group.used) if group else None
            ratio = own / base if own is not None and base else None
            label = group.label if group else NONE
            rows.append(cells((row, *of_paper, label, number(ratio, 2), number(own))))
    columns = ("method", *(f"paper {m}" for m in models), "arm", "run", "run, s of training")
    said = "Training time as a multiple of LoRAReplay's (the paper prints minutes per epoch)."
    return Table(found["caption"], columns, tuple(rows), (said, *notes))


def _orders(run: Run) -> Table:
    ours = [short_name(task) for task in run.names]
    rows = []
    for name, order in paper()["table12"]["orders"].items():
        tasks = order["tasks"]
        same = "this run" if tasks == ours else ""
        if not same and set(ours) <= set(tasks):
            kept = "in this order" if [t for t in tasks if t in ours] == ours else "in other order"
            same = f"{len(ours)} of {len(tasks)} tasks, {kept}"
        rows.append(cells((name, order["benchmark"], " → ".join(tasks), same or NONE)))
    columns = ("order", "benchmark", "tasks", stream_title(run))
    return Table("Task orders", columns, tuple(rows), task_notes(run))


def _unfinished(run: Run) -> tuple[Bullets, ...]:
    items = tuple(
        f"{g.label}: {g.state}; no numbers of it above." for g in run.groups if not g.finished
    )
    return (Bullets(items),) if items else ()
