"""Figures of one arm's signals: Lambda, history loss and interval (Figs 2, 3, 7, 9-11)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from aimmerge_fast.cl.report.signals import StageSignals
from aimmerge_fast.cl.report.style import (
    GREY,
    KINDS,
    LIGHT,
    Look,
    label,
    legend,
    line_style,
    named,
    new_figure,
    plain,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Stages in one figure; a longer stream has several.
PAGE = 4
#: Wine red: no arm and no kind of merge has it.
_THRESHOLD = "#882255"


def pages(stages: Sequence[StageSignals]) -> list[list[StageSignals]]:
    """The stages with signals, a figure's worth at a time."""
    found = [stage for stage in stages if stage.any]
    return [found[start : start + PAGE] for start in range(0, len(found), PAGE)]


def signals_figure(stages: Sequence[StageSignals], look: Look) -> Figure:
    """Above Lambda, then history loss and threshold, and S where there are merges.

    Every merge that was opened has a marker of its kind in the panels of Lambda and S, filled
    where it closed and hollow where it was undone.
    """
    merged = any(stage.merges for stage in stages)
    figure = new_figure(6.2 if merged else 4.2)
    rows = 3 if merged else 2
    panels = figure.subplots(rows, 1, sharex=True, height_ratios=[1, 1.3, 1][:rows]).tolist()
    for axes in panels:
        plain(axes)
    for stage in stages:
        _learning_signal(panels[0], stage, look)
        _history_loss(panels[1], stage)
        if merged:
            _interval(panels[2], stage, look)
    for axes in panels[:2]:
        axes.set_ylim(bottom=0)  # once all is drawn: it ends the search for the upper limit
    _boundaries(panels, stages)
    named(panels[0], y="Λ, L1 change\nper step")
    named(panels[1], y="history loss,\nnats per token")
    if merged:
        named(panels[2], y="interval S,\nsteps")
        _powers_of_two(panels[2])
    named(panels[-1], x="optimiser step of the run")
    legend(figure, _handles(stages, look), 5)
    return figure


def _learning_signal(axes: Axes, stage: StageSignals, look: Look) -> None:
    events = stage.merges or stage.measures
    x = [stage.offset + event.step for event in events]
    y = [event.learning_signal for event in events]
    axes.plot(x, y, linewidth=1.2, **line_style(look), gid="signal")
    if stage.measures and not stage.merges:
        axes.plot(x, y, ".", color=look.colour, markersize=4, gid="measure")
    _marks(axes, stage, y if stage.merges else [])


def _marks(axes: Axes, stage: StageSignals, heights: Sequence[float]) -> None:
    """A marker at each merge, by kind."""
    for merge, height in zip(stage.merges, heights, strict=True):
        marker, colour = KINDS[merge.kind]
        axes.plot(
            [stage.offset + merge.step],
            [height],
            marker,
            markersize=6,
            markeredgecolor=colour if merge.merge in stage.undone else "white",
            markeredgewidth=1.2 if merge.merge in stage.undone else 0.5,
            markerfacecolor="white" if merge.merge in stage.undone else colour,
            gid=merge.kind,
            zorder=3,
        )


def _history_loss(axes: Axes, stage: StageSignals) -> None:
    x = [stage.offset + probe.step for probe in stage.probes]
    axes.plot(
        x, [probe.loss for probe in stage.probes], ".", color=GREY, markersize=3.5, gid="loss"
    )
    # a new threshold stands from its own step to the end of the interval: gaps part the intervals
    threshold = [
        float("nan") if probe.threshold is None or probe.t == 1 else probe.threshold
        for probe in stage.probes
    ]
    axes.plot(x, threshold, color=_THRESHOLD, linewidth=1.2, gid="threshold")
    for merge in stage.merges:
        colour = KINDS[merge.kind][1]
        axes.axvline(
            stage.offset + merge.step + 0.5, color=colour, linewidth=0.8, alpha=0.6, zorder=0
        )
    for skip in stage.skips:
        axes.plot(
            [stage.offset + skip.step],
            [0.97],
            "x",
            color="#d55e00",
            markersize=5,
            transform=axes.get_xaxis_transform(),
            gid="skip",
        )


def _interval(axes: Axes, stage: StageSignals, look: Look) -> None:
    """S in force at each step, and at each merge the S that it set."""
    begin = [stage.probes[0].S] if stage.probes else [merge.S for merge in stage.merges[:1]]
    if not begin:
        return
    x = [stage.offset + 1, *(stage.offset + merge.step for merge in stage.merges)]
    y = [*begin, *(merge.next_S for merge in stage.merges)]
    axes.step(
        [*x, stage.offset + stage.steps], [*y, y[-1]], where="post", linewidth=1.2,
        **line_style(look),
    )  # fmt: skip
    _marks(axes, stage, [merge.next_S for merge in stage.merges])


def _powers_of_two(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, NullLocator

    axes.set_yscale("log", base=2)
    low, high = axes.get_ylim()
    axes.set_ylim(max(0.8, low / 1.2), high * 1.2)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _boundaries(panels: Sequence[Axes], stages: Sequence[StageSignals]) -> None:
    """A line at each task's end, its name above the first panel."""
    for stage in stages:
        for axes in panels:
            axes.axvline(stage.offset + 0.5, color=LIGHT, linewidth=1.0, zorder=0)
        panels[0].annotate(
            label(stage.name, 20),
            (stage.offset + 0.5, 1),
            xycoords=("data", "axes fraction"),
            xytext=(3, 3),
            textcoords="offset points",
            fontsize=9,
        )
    last = stages[-1]
    panels[0].set_xlim(stages[0].offset, last.offset + max(1, last.steps) + 1)


def _handles(stages: Sequence[StageSignals], look: Look) -> list[Any]:
    from matplotlib.lines import Line2D

    measured = any(stage.measures for stage in stages)
    handles = [
        Line2D(
            [], [], **line_style(look), label="Λ over 10 steps" if measured else "Λ at merges; S"
        ),
        Line2D([], [], color=GREY, marker=".", linestyle="", label="history loss"),
    ]
    if any(probe.threshold is not None for stage in stages for probe in stage.probes):
        handles.append(Line2D([], [], color=_THRESHOLD, label="threshold δ"))
    happened = [merge.kind for stage in stages for merge in stage.merges]
    undone = sum(merge.merge in stage.undone for stage in stages for merge in stage.merges)
    for kind, (marker, colour) in KINDS.items():
        if kind in happened:
            name = f"{kind.removeprefix('merge_')} merge ({happened.count(kind)})"
            handles.append(Line2D([], [], color=colour, marker=marker, linestyle="", label=name))
    if undone:
        hollow: dict[str, Any] = {
            "marker": "o",
            "linestyle": "",
            "color": GREY,
            "markerfacecolor": "white",
        }
        handles.append(Line2D([], [], **hollow, label=f"undone merge ({undone})"))
    if any(stage.skips for stage in stages):
        name = "loss not finite"
        handles.append(Line2D([], [], color="#d55e00", marker="x", linestyle="", label=name))
    return handles
