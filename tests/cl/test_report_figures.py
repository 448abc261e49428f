"""The report's figures: what is drawn is what was measured."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from aimmerge_fast.cl.report.figures_compare import (
    around_figure,
    clouds,
    correlation_figure,
    history_figure,
    trends,
)
from aimmerge_fast.cl.report.figures_scores import curves, heat_map
from aimmerge_fast.cl.report.figures_signals import PAGE, pages, signals_figure
from aimmerge_fast.cl.report.reading import parse_run, read_run
from aimmerge_fast.cl.report.run import Arm, Run
from aimmerge_fast.cl.report.signals import around_merges, may_merge, pairs, stage_signals
from aimmerge_fast.cl.report.style import Look, looks, to_png
from aimmerge_fast.events import Event, Measure, Open, Probe, Reject, Skip, TaskBegin
from tests.cl.report_fixture import SCORES, STEPS, events, results, write_run
from tests.made_events import begin, merge

LOOK = Look("#d55e00", "-", "o")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return read_run(write_run(tmp_path_factory.mktemp("run")))


def arm(run: Run, name: str, seed: int = 42) -> Arm:
    return next(one for one in run.arms if (one.name, one.seed) == (name, seed))


def lines(figure: Figure, gid: str, panel: int = 0) -> list[Any]:
    return [line for line in figure.axes[panel].lines if line.get_gid() == gid]


def data(found: list[Any]) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for line in found for x, y in zip(*line.get_data(), strict=True)]


def test_every_axis_has_a_name_and_units(run: Run) -> None:
    found = trends(run, pairs(run)[0])
    figures = [
        *(heat_map(run), curves(run), around_figure(run), history_figure(run, found)),
        *(signals_figure(pages(arm(run, n).signals)[0], LOOK) for n in ("aim", "seqlora")),
        correlation_figure(run, clouds(run)),
    ]
    for figure in figures:
        assert figure is not None
        named_x = [axes.get_xlabel() for axes in figure.axes]
        named_y = [axes.get_ylabel() for axes in figure.axes]
        assert any(named_x)
        assert any(named_y)
        assert named_x[-1] or named_y[-1]


def test_a_merge_is_marked_where_it_opened_by_its_kind(run: Run) -> None:
    one = arm(run, "aim")
    figure = signals_figure(pages(one.signals)[0], LOOK)
    offsets = {"dbpedia": 0, "yahoo": STEPS, "agnews": 2 * STEPS}
    opened = [event for event in events("aim", 42) if isinstance(event, Open)]
    assert len(opened) == 16
    for kind in {event.kind for event in opened}:
        wanted = [event for event in opened if event.kind == kind]
        signal = [(offsets[e.task] + e.step, e.learning_signal) for e in wanted]
        interval = [(offsets[e.task] + e.step, float(e.next_S)) for e in wanted]
        np.testing.assert_allclose(data(lines(figure, kind, 0)), signal)
        np.testing.assert_allclose(data(lines(figure, kind, 2)), interval)


def test_every_history_loss_and_signal_is_within_its_panel(run: Run) -> None:
    for name in ("aim", "seqlora"):
        figure = signals_figure(pages(arm(run, name).signals)[0], LOOK)
        for panel, gid in ((0, "signal"), (1, "loss")):
            low, high = figure.axes[panel].get_ylim()
            values = [y for _, y in data(lines(figure, gid, panel))]
            assert low <= min(values)
            assert max(values) <= high
        probes = [e for e in events(name, 42) if isinstance(e, Probe)]
        assert [y for _, y in data(lines(figure, "loss", 1))] == [e.loss for e in probes]


def test_a_watched_arm_shows_its_measurements(run: Run) -> None:
    figure = signals_figure(pages(arm(run, "seqlora").signals)[0], LOOK)
    measured = [e.learning_signal for e in events("seqlora", 42) if isinstance(e, Measure)]
    assert len(measured) == 2 * STEPS / 10
    assert [y for _, y in data(lines(figure, "measure"))] == measured
    assert len(figure.axes) == 2


def test_undone_merges_are_hollow_and_bad_losses_marked() -> None:
    made: list[Event] = [begin(), Probe("a", 1, 1, 8, 0, 0.5, None, "collect")]
    made += [Skip("a", 2, 2, float("nan"), 1), *merge(1, 8)]
    made += [merge(2, 16, "forced")[0], Reject("a", 16, 2, "close", 3)]
    stage = stage_signals(made, ["a"], {})[0]
    assert stage.undone == {2}
    figure = signals_figure([stage], LOOK)
    faces = {kind: lines(figure, kind)[0].get_markerfacecolor() for kind in ("merge_forced",)}
    assert faces == {"merge_forced": "white"}
    assert lines(figure, "merge_due")[0].get_markerfacecolor() != "white"
    assert [x for x, _ in data(lines(figure, "skip", 1))] == [2.0]
    assert len(to_png(figure)) > 1000


def test_a_long_stream_has_several_figures(run: Run) -> None:
    stage = arm(run, "aim").signals[1]
    many = [dataclasses.replace(stage, name=str(i)) for i in range(2 * PAGE + 1)]
    assert [len(page) for page in pages(many)] == [PAGE, PAGE, 1]
    assert pages(arm(run, "replay").signals) == []


def test_history_losses_have_their_line_of_least_squares(run: Run) -> None:
    (pair,) = pairs(run)
    assert [group.name for group in pair] == ["seqlora", "aim"]
    found = trends(run, pair)
    assert [(trend.task, trend.group.name) for trend in found] == [
        *(("yahoo", "seqlora"), ("yahoo", "aim"), ("agnews", "seqlora"), ("agnews", "aim")),
    ]
    figure = history_figure(run, found)
    for trend in found:
        slope, intercept = np.polyfit(trend.steps, trend.losses, 1)
        panel = 0 if trend.task == "yahoo" else 1
        ends = [(1.0, slope + intercept), (STEPS, slope * STEPS + intercept)]
        both = data(lines(figure, "line", panel))
        place = 0 if trend.group.name == "seqlora" else 2
        np.testing.assert_allclose(both[place : place + 2], ends)


def test_replay_is_the_plain_arm_where_it_was_watched(tmp_path: Path) -> None:
    content = results(seeds=(42,))
    out = write_run(tmp_path, content)
    content["arms"][1]["events"] = content["arms"][0]["events"]
    (pair,) = pairs(parse_run(content, out))
    assert [group.name for group in pair] == ["replay", "aim"]


def test_around_merges_by_hand() -> None:
    losses = tuple(float(step) for step in range(1, 31))
    made: list[Event] = [begin()]
    made += merge(1, 10, alpha_new=0.5, alpha_past=0.5)
    made += merge(2, 14, alpha_new=1.0, alpha_past=0.0)  # moved nothing
    made += [merge(3, 18, alpha_new=0.5, alpha_past=0.5)[0], Reject("a", 18, 3, "close", 1)]
    made += merge(4, 28, alpha_new=0.0, alpha_past=1.0)
    stages = stage_signals(made, ["a"], {"a": losses})
    offsets, values, count = around_merges(stages, "training")
    assert count == 2
    assert offsets == list(range(-7, 9))
    assert values[offsets.index(0)] == [10.0, 28.0]
    assert values[offsets.index(1)] == [11.0, 29.0]
    assert values[offsets.index(8)] == [18.0]  # the second merge has two steps left


def test_correlations_are_numpys(run: Run) -> None:
    found = {(cloud.group.name, cloud.signal): cloud for cloud in clouds(run)}
    cloud = found["aim", "learning signal"]
    wanted = []
    for seed in (42, 43):
        for place, task in ((1, "yahoo"), (2, "agnews")):
            opened = [e for e in events("aim", seed) if isinstance(e, Open) and e.task == task]
            score = SCORES["aim"][place][place]
            assert score is not None
            wanted.append((np.mean([e.learning_signal for e in opened]), score + seed - 42))
    np.testing.assert_allclose([point[1:] for point in cloud.points], wanted)
    r, n = cloud.correlation
    assert n == 4
    assert r == pytest.approx(np.corrcoef(np.transpose(wanted))[0, 1])


def test_activations_by_hand() -> None:
    def probe(step: int, t: int, count: int, code: str) -> Probe:
        return Probe("a", step, t, 2, count, 1.0, 0.5, code)

    made: list[Event] = [begin()]
    made += [probe(1, 1, 0, "threshold"), probe(2, 2, 1, "merge_due"), *merge(1, 2)]
    made += [probe(3, 1, 0, "threshold"), probe(4, 2, 1, "activate"), probe(5, 3, 1, "monitor")]
    made += [probe(6, 4, 2, "merge_forced")]  # the released code counts a forced merge
    stage = stage_signals(made, ["a"], {})[0]
    assert (stage.activations, stage.judged) == (2, 4)


def test_no_correlation_below_three_points(tmp_path: Path) -> None:
    short = read_run(write_run(tmp_path, results(seeds=(42,), arms=("aim",))))
    for cloud in clouds(short):
        assert cloud.correlation == (None, 2)
    figure = correlation_figure(short, clouds(short))
    said = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert said == ["AIMMerging: no correlation, n = 2"]


def test_a_stage_that_repeats_after_a_crash_counts_once() -> None:
    twice = [begin(), *merge(1, 8), begin(), *merge(1, 9)]
    stage = stage_signals(twice, ["a"], {"a": (1.0,) * 20})[0]
    assert [one.step for one in stage.merges] == [9]
    assert stage.steps == 20


def test_heat_map_and_curves_show_the_means(run: Run) -> None:
    figure = heat_map(run)
    assert figure is not None
    panel = figure.axes[2]
    shown = [text.get_text() for text in panel.texts]
    assert shown == ["83.5", "72.5", "58.5", "76.0", "60.0", "89.0"]
    course = curves(run)
    assert course is not None
    aim = course.axes[0].lines[2]
    assert list(aim.get_ydata()) == [83.5, 72.5, 76.0]
    assert aim.get_color() == looks(run)["aim"].colour
    level = course.axes[0].lines[3]
    assert set(level.get_ydata()) == {84.5}
    assert list(course.axes[3].lines[2].get_ydata()) == pytest.approx([83.5, 65.5, 75.0])


def test_looks_are_different_for_twelve_arms() -> None:
    content = results(seeds=(42,), arms=("aim",))
    content["arms"] = [dict(content["arms"][0], name=f"aim-{i}") for i in range(12)]
    found = looks(parse_run(content))
    assert len({(look.colour, str(look.dashes)) for look in found.values()}) == 12


@pytest.mark.parametrize("name", ["$a$b$", "任务\n一", "x" * 300, "\\frac{", "%s^_"])
def test_any_name_can_be_drawn(tmp_path: Path, name: str) -> None:
    content = results(seeds=(42,), arms=("replay",))
    content["stream"]["tasks"][0] = content["arms"][0]["stages"][0] = name
    content["arms"][0]["label"] = name
    odd = read_run(write_run(tmp_path, content))
    for figure in (heat_map(odd), curves(odd)):
        assert figure is not None
        assert to_png(figure).startswith(b"\x89PNG")


def test_an_arm_that_could_merge_but_never_did_is_no_plain_one() -> None:
    probe = Probe("a", 1, 1, 8, 0, 0.5, None, "collect")
    assert may_merge([TaskBegin("a", 0, 20, {"schedule": "adaptive"}), probe])
    assert not may_merge([TaskBegin("a", 0, 0, {"schedule": "adaptive"})])  # the first task
    assert not may_merge([TaskBegin("a", 0, 20, {"schedule": "monitor"}), probe])
