"""A run's report: what stands in it, in which order, and the files it becomes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from aimmerge_fast.cl.report import html, markdown
from aimmerge_fast.cl.report.blocks import (
    Block,
    Bullets,
    Document,
    Paragraph,
    Picture,
    Section,
    counted,
    in_parts,
)
from aimmerge_fast.cl.report.diagnosis import diagnosis_blocks
from aimmerge_fast.cl.report.figures_compare import (
    around_figure,
    clouds,
    correlation_figure,
    history_figure,
    trends,
)
from aimmerge_fast.cl.report.figures_scores import curves, heat_map
from aimmerge_fast.cl.report.figures_signals import pages, signals_figure
from aimmerge_fast.cl.report.notes import stream_title
from aimmerge_fast.cl.report.reading import read_run
from aimmerge_fast.cl.report.run import Group, Run
from aimmerge_fast.cl.report.signals import drawn, pairs
from aimmerge_fast.cl.report.style import looks, to_png
from aimmerge_fast.cl.report.tables import (
    cost_table,
    kept_table,
    machine,
    method_table,
    signal_table,
    trend_table,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = "report"
_WIDE = 4  # arms in one table of kept and lost; more of them go into further tables


def write_report(out: Path) -> list[Path]:
    """Write ``report.md``, ``report.html`` and the figures into ``out/report``; returns them.

    A report that is there is replaced. Reads nothing but the run folder.

    Raises:
        OSError: no ``results.json`` in ``out``, or files that cannot be written.
        ValueError: results of another version, or malformed.
    """
    document = build(read_run(Path(out)))
    folder = Path(out) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [b for s in document.sections for b in s.blocks if isinstance(b, Picture)]
    files = {
        "report.md": markdown.render(document).encode(),
        "report.html": html.render(document).encode(),
        **{f"{picture.name}.png": picture.png for picture in pictures},
    }
    for stale in folder.glob("figure-*.png"):
        if stale.name not in files:
            stale.unlink()
    for name, content in files.items():
        aside = folder / f".{name}.{os.getpid()}.part"
        aside.write_bytes(content)
        aside.replace(folder / name)
    return [folder / name for name in files]


def build(run: Run) -> Document:
    """The report of a run."""
    if not any(arm.done for arm in run.arms):
        start: tuple[Block, ...] = (Paragraph("No task of any arm has been scored yet."),)
    else:
        start = tuple(in_parts(kept_table(run), _WIDE))
    sections = [
        Section("The run", (Bullets(tuple(_facts(run))),)),
        Section("What was kept, what was lost", start),
        Section("Methods", (method_table(run),)),
        Section("Scores", tuple(_score_figures(run))),
        Section("What the controller did", (*diagnosis_blocks(run), *_signal_figures(run))),
        Section("History loss, plain and merging", tuple(_history(run))),
        Section("Around merges", tuple(_around(run))),
        Section("Signals and scores", tuple(_correlations(run))),
        Section("Cost", (cost_table(run),)),
    ]
    return Document(f"Run on {stream_title(run)}", tuple(sections))


def _facts(run: Run) -> Iterator[str]:
    settings = run.settings
    yield f"Tasks, in order: {' → '.join(run.names)}."
    yield f"Model: {Path(str(settings.get('model', 'not recorded'))).name}."
    known = [name for name in ("steps", "epochs", "batch", "lr", "max_tokens", "dtype", "rank")
             if settings.get(name) is not None]  # fmt: skip
    if "steps" in known and "epochs" in known:
        known.remove("epochs")  # updates were given: epochs did not count
    if known:
        yield "Settings: " + ", ".join(f"{name} {settings[name]}" for name in known) + "."
    states = [f"{group.label} ({group.state})" for group in run.groups]
    yield f"Arms: {', '.join(states) or 'none yet'}."
    for group in run.groups:
        for arm in group.failed:
            stages = f"{arm.done} of {len(arm.stages)} stages"
            yield f"Failed after {stages}: {group.label}, seed {arm.seed}: {arm.failed}"
    yield f"Machine: {machine(run)}."
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    yield f"Written {run.created or '?'}, commit {run.commit or '?'}; {versions}."


def _score_figures(run: Run) -> Iterator[Block]:
    seeds = max((len(group.used) for group in run.groups), default=1)
    over = f", mean over {counted(seeds, 'seed')}" if seeds > 1 else ""
    for name, figure, caption in (
        ("heatmap", heat_map(run), f"Score of each task after each stage{over}."),
        (
            "curves",
            curves(run),
            f"Course of each task's score{over}"
            + (" (band: ± sd)" if seeds > 1 else "")
            + ". Last panel: mean of the tasks learned so far.",
        ),
    ):
        if figure is not None:
            yield _picture(name, caption, figure)
    if not any(arm.done for arm in run.arms):
        yield Paragraph("No scores yet.")


def _signal_figures(run: Run) -> Iterator[Block]:
    styles = looks(run)
    for place, group in enumerate(run.groups, start=1):
        arm = drawn(group)
        found = pages(arm.signals)
        for number, stages in enumerate(found, start=1):
            seed = f", seed {arm.seed}" if len(group.arms) > 1 else ""
            part = f" ({number} of {len(found)})" if len(found) > 1 else ""
            merged = arm.merging
            what = (
                "learning signal Λ at merges, history loss and its threshold δ, planned interval S"
                if merged
                else "learning signal Λ and history loss, nothing merged"
            )
            quiet = [stage.name for stage in arm.signals if not stage.any]
            without = f" Without signals: {', '.join(quiet)}." if quiet and number == 1 else ""
            slug = re.sub(r"[^A-Za-z0-9.]+", "-", group.name).strip("-.")
            yield _picture(
                f"signals-{place:02d}-{slug}-{number}",
                f"{group.label}{seed}{part}: {what}.{without}",
                signals_figure(stages, styles[group.name]),
            )


def _history(run: Run) -> Iterator[Block]:
    found = [(plain, ours, trends(run, (plain, ours))) for plain, ours in pairs(run)]
    found = [entry for entry in found if entry[2]]
    if not found:
        yield Paragraph(
            "Left out: it needs an arm that merges and one that does not but was watched "
            "(setting monitor), with history losses of a common task."
        )
    for number, (plain, ours, both) in enumerate(found, start=1):
        yield _picture(
            f"history-{number:02d}",
            f"History loss per step, {plain.label} and {ours.label}{_seed(ours)}, with lines of "
            "least squares.",
            history_figure(run, both),
        )
        yield trend_table(run, both)


def _around(run: Run) -> Iterator[Block]:
    figure = around_figure(run)
    if figure is None:
        yield Paragraph("Left out: no arm has events of a merge that moved the parameters.")
        return
    yield _picture(
        "around-merges",
        "Mean loss around merges that moved the parameters (± standard error); the first loss "
        "right of the dashed line is the first after the merge. A merge that the history loss "
        "brought about comes at a high one: part of the fall after it is that choice alone.",
        figure,
    )


def _correlations(run: Run) -> Iterator[Block]:
    found = clouds(run)
    if not found:
        yield Paragraph("Left out: no arm has both signals and scores.")
        return
    yield _picture(
        "signals-scores",
        "Learning signal and activations of each task against its score when learned; one point "
        "per task and seed.",
        correlation_figure(run, found),
    )
    yield signal_table(run, found)


def _seed(group: Group) -> str:
    return f" (seed {drawn(group).seed})" if len(group.arms) > 1 else ""


def _picture(name: str, caption: str, figure: Figure) -> Picture:
    return Picture(f"figure-{name}", caption, to_png(figure))
