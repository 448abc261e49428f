"""Figures that hold arms against each other: Figs 8, 12, 13, Fig. 4, and the correlations."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from aimmerge_fast.cl.report.blocks import number
from aimmerge_fast.cl.report.run import Group, Run
from aimmerge_fast.cl.report.scores import kept
from aimmerge_fast.cl.report.signals import (
    StageSignals,
    around_merges,
    drawn,
)
from aimmerge_fast.cl.report.statistics import least_squares, mean, mean_sd, pearson
from aimmerge_fast.cl.report.style import (
    GREY,
    Look,
    columns_for,
    grid,
    label,
    legend,
    line_handle,
    line_style,
    looks,
    named,
    titled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Trend:
    """History loss of one arm in one task, over the task's steps."""

    task: str
    group: Group
    steps: tuple[int, ...]
    losses: tuple[float, ...]

    @property
    def line(self) -> tuple[float, float] | None:
        """(slope per step, intercept)."""
        return least_squares(self.steps, self.losses)

    @property
    def mean(self) -> float | None:
        return mean(self.losses)


def trends(run: Run, groups: Sequence[Group]) -> list[Trend]:
    """Of the tasks that all of ``groups`` have history losses of, task by task."""
    found: dict[str, list[Trend]] = {}
    for group in groups:
        for stage in drawn(group).signals:
            if stage.probes:
                steps = tuple(probe.step for probe in stage.probes)
                losses = tuple(probe.loss for probe in stage.probes)
                found.setdefault(stage.name, []).append(Trend(stage.name, group, steps, losses))
    return [trend for parts in found.values() if len(parts) == len(groups) for trend in parts]


def history_figure(run: Run, found: Sequence[Trend]) -> Figure:
    """One panel per task: both arms' history losses with their lines."""
    tasks = list(dict.fromkeys(trend.task for trend in found))
    columns = columns_for(len(tasks), 3 if len(tasks) <= 8 else 4)
    figure, panels = grid(len(tasks), columns, 2.6)
    styles = looks(run)
    for place, (axes, task) in enumerate(zip(panels, tasks, strict=True)):
        for trend in found:
            if trend.task == task:
                _trend(axes, trend, styles[trend.group.name])
        titled(axes, task)
        axes.set_ylim(bottom=0)
        named(axes, "optimiser step of the task")
        named(axes, y="history loss, nats per token" if place % columns == 0 else None)
    groups = {trend.group.name: trend.group for trend in found}.values()
    legend(figure, [line_handle(styles[group.name], group.label) for group in groups])
    return figure


def _trend(axes: Axes, trend: Trend, look: Look) -> None:
    axes.plot(
        trend.steps, trend.losses, ".", color=look.colour, markersize=3, alpha=0.45,
        markeredgewidth=0,
    )  # fmt: skip
    if trend.line is not None:
        slope, intercept = trend.line
        ends = [trend.steps[0], trend.steps[-1]]
        y = [intercept + slope * end for end in ends]
        axes.plot(ends, y, linewidth=1.8, **line_style(look), gid="line")


def around_figure(run: Run) -> Figure | None:
    """Mean training and history loss around merges that moved the parameters, ± standard error."""
    styles = looks(run)
    groups = [group for group in run.groups if drawn(group).merging]
    courses = [(group, drawn(group).signals) for group in groups]
    courses = [(group, stages) for group, stages in courses if around_merges(stages, "history")[2]]
    if not courses:
        return None
    figure, panels = grid(2, 2, 3.0)
    kinds = (("training", "training loss"), ("history", "history loss"))
    handles = []
    for axes, (kind, name) in zip(panels, kinds, strict=True):
        for group, stages in courses:
            count = _around(axes, stages, kind, styles[group.name])
            if kind == "history":
                name_n = f"{label(group.label, 40)}: {count} merges"
                handles.append(line_handle(styles[group.name], name_n, True))
        axes.axvline(0.5, color=GREY, linewidth=1.0, linestyle=(0, (2, 2)))
        axes.annotate(
            "merge", (0.5, 1), xycoords=("data", "axes fraction"), xytext=(3, -9),
            textcoords="offset points", fontsize=8, color=GREY,
        )  # fmt: skip
        named(axes, "optimiser steps from the merge", f"{name}, nats per token")
    legend(figure, handles, 3)
    return figure


def _around(axes: Axes, stages: Sequence[StageSignals], kind: str, look: Look) -> int:
    offsets, values, count = around_merges(stages, kind)
    points = [(o, *mean_sd(v), len(v)) for o, v in zip(offsets, values, strict=True) if v]
    x = [offset for offset, *_ in points]
    y = [middle or 0.0 for _, middle, _, _ in points]
    error = [(sd or 0.0) / n**0.5 for _, _, sd, n in points]
    axes.plot(x, y, marker=look.marker, markersize=3.5, linewidth=1.4, **line_style(look))
    low = [a - b for a, b in zip(y, error, strict=True)]
    high = [a + b for a, b in zip(y, error, strict=True)]
    axes.fill_between(x, low, high, color=look.colour, alpha=0.15, linewidth=0)
    return count


@dataclasses.dataclass(frozen=True)
class Cloud:
    """Points of one arm, one per task and seed: a signal against the score when learned."""

    group: Group
    signal: str
    points: tuple[tuple[str, float, float], ...]

    @property
    def correlation(self) -> tuple[float | None, int]:
        return pearson([x for _, x, _ in self.points], [y for _, _, y in self.points])


#: signal -> name and unit of its axis
SIGNALS = {
    "learning signal": "mean Λ of the task, L1 change per step",
    "activations": "activations per 100 judged steps",
}


def clouds(run: Run) -> list[Cloud]:
    """For each arm with signals, both of them; only stages that have the signal are points."""
    found = []
    for group in run.groups:
        if not (drawn(group).merging or drawn(group).watched):
            continue
        for signal in SIGNALS:
            points = tuple(point for arm in group.used for point in _points(run, arm, signal))
            if points:
                found.append(Cloud(group, signal, points))
    return found


def _points(run: Run, arm: Any, signal: str) -> list[tuple[str, float, float]]:
    points = []
    for stage in arm.signals:
        if stage.name not in run.names:
            continue
        score = kept(arm, stage.name, run.names.index(stage.name)).learned
        if signal == "activations":
            value = 100 * stage.activations / stage.judged if stage.judged else None
        else:
            value = stage.learning_signal
        if score is not None and value is not None:
            points.append((stage.name, value, score))
    return points


def correlation_figure(run: Run, found: Sequence[Cloud]) -> Figure:
    figure, panels = grid(len(SIGNALS), 2, 3.2)
    styles = looks(run)
    groups = {cloud.group.name: cloud.group for cloud in found}
    for axes, (signal, axis) in zip(panels, SIGNALS.items(), strict=True):
        for cloud in found:
            if cloud.signal == signal:
                _cloud(axes, cloud, styles[cloud.group.name], len(groups) == 1)
        named(axes, axis, "score when learned, %")
        axes.margins(0.12)
        if axes.get_legend_handles_labels()[0]:
            # above the panel, where it hides no point
            axes.legend(fontsize=7.5, frameon=False, loc="lower left", bbox_to_anchor=(0, 1))
    return figure


def _cloud(axes: Axes, cloud: Cloud, look: Look, alone: bool) -> None:
    r, n = cloud.correlation
    said = f"r = {number(r, 2)}" if r is not None else "no correlation"
    axes.plot(
        [x for _, x, _ in cloud.points],
        [y for _, _, y in cloud.points],
        look.marker,
        color=look.colour,
        markersize=5,
        alpha=0.8,
        label=f"{label(cloud.group.label, 30)}: {said}, n = {n}",
    )
    for task, x, y in cloud.points if alone and len(cloud.points) <= 8 else ():
        axes.annotate(
            label(task, 14), (x, y), xytext=(4, 3), textcoords="offset points", fontsize=7
        )
