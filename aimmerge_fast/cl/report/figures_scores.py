"""Figures of the scores: heat map of the matrices, course of each task (the paper's Figs 5, 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aimmerge_fast.cl.report.notes import is_bound
from aimmerge_fast.cl.report.run import Group, Run
from aimmerge_fast.cl.report.scores import column_of, mean_matrix
from aimmerge_fast.cl.report.statistics import mean, mean_sd
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
    from matplotlib.image import AxesImage

#: More tasks than this have no room for their full names and digits in a panel.
_FEW, _MANY = 5, 8


def heat_map(run: Run) -> Figure | None:
    """One panel per arm: rows stages, columns tasks, mean over seeds; None without any score."""
    groups = [group for group in run.groups if group.used[0].done]
    if not groups:
        return None
    tasks = len(run.names)
    columns = columns_for(len(groups), 4 if tasks <= 3 else 3 if tasks <= _FEW else 2)
    most = max(group.used[0].done for group in groups)
    row = 0.32 if tasks <= _MANY else 0.19
    figure, panels = grid(len(groups), columns, 0.9 + row * most + (0.4 if tasks > 3 else 0.1))
    for place, (axes, group) in enumerate(zip(panels, groups, strict=True)):
        image = _matrix(axes, run, group)
        axes.set_ylim(most - 0.5, -0.5)  # rows of one height in all panels
        named(axes, "tested task", "after stage" if place % columns == 0 else None)
    height = figure.get_size_inches()[1]
    bar = figure.colorbar(
        image,
        ax=panels,
        location="bottom",
        shrink=0.4,
        aspect=40,
        fraction=0.25 / height,
        pad=0.05 / height,
    )
    bar.set_label("score, %", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return figure


def _matrix(axes: Axes, run: Run, group: Group) -> AxesImage:
    import numpy as np

    values = mean_matrix(group)
    matrix = np.array([[np.nan if v is None else v for v in row] for row in values], dtype=float)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    image = axes.imshow(
        np.ma.masked_invalid(matrix), vmin=0, vmax=100, cmap="viridis", aspect="auto"
    )
    size = 8.0 if len(run.names) <= _MANY else 5.5
    for (j, i), value in np.ndenumerate(matrix):
        if np.isfinite(value):
            axes.text(
                i,
                j,
                f"{value:.0f}" if len(run.names) > _MANY else f"{value:.1f}",
                ha="center",
                va="center",
                fontsize=size,
                color="white" if value < 60 else "black",
            )
    slanted = len(run.names) > 3
    names = [label(name, 14) for name in run.names]
    axes.set_xticks(range(len(names)), names, fontsize=size, rotation=35 if slanted else 0)
    for text in axes.get_xticklabels() if slanted else ():
        text.set(ha="right", rotation_mode="anchor")
    stages = [label(stage, 14) for stage in group.used[0].stages[: len(values)]]
    axes.set_yticks(range(len(stages)), stages, fontsize=size)
    axes.tick_params(length=0)
    titled(axes, group.label)
    return image


def curves(run: Run) -> Figure | None:
    """One panel per task, score after each stage, mean ± sd over seeds; the last is their mean."""
    if not any(arm.done for arm in run.arms):
        return None
    count = len(run.names) + 1
    columns = columns_for(count, 3 if count <= _MANY else 4)
    figure, panels = grid(count, columns, 2.0)
    styles = looks(run)
    for place, (axes, task) in enumerate(zip(panels, [*run.names, None], strict=True)):
        for group in run.groups:
            points = _mean_points(run, group) if task is None else column_of(run, place, group)
            _course(axes, points, styles[group.name], is_bound(group))
        titled(axes, "mean of the tasks so far" if task is None else task)
        _stage_axis(axes, run, place >= count - columns)
        named(axes, y="score, %" if place % columns == 0 else None)
    handles = [
        line_handle(styles[group.name], group.label, not is_bound(group)) for group in run.groups
    ]
    legend(figure, handles)
    return figure


def _mean_points(run: Run, group: Group) -> list[tuple[int, float, float]]:
    """(stage, mean, sd) of the mean score over the tasks that were learned by then."""
    points = []
    for j in range(max(arm.done for arm in group.used)):
        means = []
        for arm in group.used:
            learned = set(arm.stages[: j + 1])
            row = arm.scores[j] if j < arm.done else ()
            seen = [s for s, name in zip(row, run.names, strict=False) if name in learned]
            means.append(mean(seen or row))
        middle, sd = mean_sd(means)
        if middle is not None:
            points.append((j + 1, middle, sd or 0.0))
    return points


def _course(axes: Axes, points: list[tuple[int, float, float]], look: Look, across: bool) -> None:
    """A line through the points with its band; ``across``: a level that holds for all stages."""
    if not points:
        return
    x = [stage for stage, _, _ in points]
    y = [middle for _, middle, _ in points]
    if across:
        axes.axhline(y[-1], linewidth=1.2, **line_style(look))
        return
    axes.plot(x, y, marker=look.marker, markersize=4, linewidth=1.5, **line_style(look))
    if any(sd for _, _, sd in points):
        low = [middle - sd for _, middle, sd in points]
        high = [middle + sd for _, middle, sd in points]
        axes.fill_between(x, low, high, color=look.colour, alpha=0.15, linewidth=0)


def _stage_axis(axes: Axes, run: Run, lowest: bool) -> None:
    """All panels alike: every stage on x, 0 to 100 on y."""
    count = len(run.names)
    axes.set_xlim(0.7, count + 0.3)
    axes.set_ylim(-3, 103)
    few = count <= 4
    ticks = list(range(1, count + 1, 1 if count <= _MANY else 2))
    axes.set_xticks(ticks, [label(run.names[t - 1], 9) if few else str(t) for t in ticks])
    axes.tick_params(labelsize=8, color=GREY)
    if lowest:
        named(axes, "after stage" if few else "after stage number")
