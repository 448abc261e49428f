"""Controls with as many merges as another arm."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from aimmerge_fast.cl import runner
from aimmerge_fast.cl.config import ArmSpec
from aimmerge_fast.cl.matching import matched_settings, merge_counts
from aimmerge_fast.cl.methods import Stage, method_class
from aimmerge_fast.cl.parallel import Ranks
from aimmerge_fast.events import Open
from tests.cl.bare import FIRST, SECOND, adapter, begin, bench, restore, run_updates, save, train
from tests.cl.tiny import finished_run, make_config

NONE = {"early": 0, "due": 0, "deferred": 0, "forced": 0, "final": 0}


def task(name: str, **merges: int) -> dict[str, Any]:
    return {"task": name, "steps": 120, "merges": {**NONE, **merges}}


def context_of(out: Path, *tasks: dict[str, Any], finished: bool = True) -> Any:
    """A run folder whose arm ``aim`` made these merges."""
    folder = out / "aim-s7"
    folder.mkdir()
    entry = {"finished": finished, "merges": {"tasks": list(tasks)}}
    (folder / "arm.json").write_text(json.dumps(entry))
    return SimpleNamespace(config=SimpleNamespace(out=out), ranks=Ranks())


# ---- what an arm is to make -----------------------------------------------------------------


def test_the_counts_of_an_arm(tmp_path: Path) -> None:
    tasks = [task("a"), task("b", early=4, due=5), task("c", final=1), task("d")]
    spec = ArmSpec(method="fixed", settings={"match": "aim", "f_max": 2})
    found = matched_settings(context_of(tmp_path, *tasks), spec, 7)
    assert found == {"f_max": 2, "counts": {"b": 9, "c": 1}}
    plain = ArmSpec(method="fixed", settings={"s_init": 3})
    assert matched_settings(SimpleNamespace(), plain, 7) == {"s_init": 3}  # type: ignore[arg-type]


def test_an_arm_that_never_merged(tmp_path: Path) -> None:
    spec = ArmSpec(method="fixed", name="f", settings={"match": "aim"})
    assert matched_settings(context_of(tmp_path, task("a")), spec, 7) == {"counts": {}}
    assert merge_counts({"merges": None}) == {}


def test_an_arm_that_is_not_there_yet(tmp_path: Path) -> None:
    spec = ArmSpec(method="fixed", name="f", settings={"match": "aim"})
    context = context_of(tmp_path, task("a", due=12), finished=False)
    message = r"arm 'f' has match='aim', which is not finished with seed {}; put it before this arm"
    with pytest.raises(ValueError, match=message.format(7)):
        matched_settings(context, spec, 7)
    with pytest.raises(ValueError, match=message.format(8)):
        matched_settings(context, spec, 8)


def test_more_merges_than_can_be_placed(tmp_path: Path) -> None:
    spec = ArmSpec(method="random", name="r", settings={"match": "aim"})
    context = context_of(tmp_path, task("a", due=64), task("b", due=60, early=5))
    message = r"arm 'r' has match='aim', which makes 65 merges in task 'b'; .* at most 64 in a task"
    with pytest.raises(ValueError, match=message):
        matched_settings(context, spec, 7)


# ---- where it merges ------------------------------------------------------------------------


def opens(name: str, steps: int, count: int) -> list[Open]:
    """The merges of the second task by an arm that is to make ``count`` there."""
    work = bench(steps=steps)
    method = work.method(name, counts={"second": count} if count else {})
    train(method, FIRST, 0, steps)
    train(method, SECOND, 1, steps)
    found = [event for event in work.events if isinstance(event, Open)]
    assert method.merges() == len(found)
    return found


@pytest.mark.parametrize(
    ("steps", "count", "places"),
    [
        (10, 4, [2, 5, 8, 10]),  # 2.5, 5, 7.5 and 10: an interval of round(2.5) made 5
        (7, 3, [2, 5, 7]),  # 2.33, 4.67
        (6, 6, [1, 2, 3, 4, 5, 6]),
        (9, 1, [9]),
        (9, 0, []),
    ],
)
def test_fixed_places_by_hand(steps: int, count: int, places: list[int]) -> None:
    found = opens("fixed", steps, count)
    assert [event.step for event in found] == places
    assert all((event.alpha_new, event.alpha_past) == (0.5, 0.5) for event in found)


def test_random_places() -> None:
    """Of updates 1 to 9 in the order in which random.Random("42/second") draws them."""
    drawn = [1, 9, 2, 8]
    assert [event.step for event in opens("random", 9, 4)] == sorted(drawn)
    assert len(opens("random", 9, 9)) == 9


@pytest.mark.parametrize("name", ["fixed", "random"])
def test_places_are_as_many_as_asked_for(name: str) -> None:
    for steps in (1, 13, 64, 65, 120, 1000):
        for count in range(1, min(steps, 64) + 1):
            places = method_class(name).places(count, steps, "42/a")  # type: ignore[attr-defined]
            assert len(set(places)) == count
            assert places == sorted(places)
            assert places[0] >= 1
            assert places[-1] <= steps


def test_merges_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="task 'second': 6 merges do not fit into 5 updates"):
        opens("fixed", 5, 6)


@pytest.mark.parametrize("name", ["fixed", "random"])
@pytest.mark.parametrize("count", [4, 0])
@pytest.mark.parametrize("cut", [1, 5, 6])
def test_saved_inside_a_stage(name: str, count: int, cut: int, tmp_path: Path) -> None:
    """Places of ``fixed``: 2, 5, 8 and 10 of 10."""
    settings: dict[str, Any] = {"counts": {"second": count} if count else {}}
    whole = bench(steps=10).method(name, **settings)
    train(whole, FIRST, 0, 4)
    assert whole.state_dict() == {"merger": None, "merges": 0}
    stage = Stage(SECOND.name, (SECOND,))
    begin(whole, stage, 1)
    with whole.task(stage, 1):
        run_updates(whole, stage, 1, 0, cut)
        save(tmp_path / "state", whole)
        run_updates(whole, stage, 1, cut, 10)
    whole.end_stage(stage, 1)

    torch.manual_seed(0)
    work = bench(steps=10)
    again = work.method(name, **settings)
    restore(tmp_path / "state", again)
    assert again.state_dict()["merger"] is not None  # a save before the task is entered
    with again.task(stage, 1):
        run_updates(again, stage, 1, cut, 10)
    again.end_stage(stage, 1)

    one, two = adapter(whole.trainee), adapter(again.trainee)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert whole.merges() == again.merges() == count
    assert whole.state_dict() == again.state_dict()


# ---- whole runs -----------------------------------------------------------------------------


def made(arm: dict[str, Any]) -> dict[str, int]:
    return {part["task"]: sum(part["merges"].values()) for part in arm["merges"]["tasks"]}


def test_a_run_with_matched_arms(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    folder = finished_run(tmp_path_factory)
    arms = ["aim:s_init=5", "fixed:match=aim-s_init=5", "random:match=aim-s_init=5"]
    config = make_config(folder, arms, out=tmp_path / "out", steps=12)
    aim, *controls = runner.run(config)["arms"]
    merges = made(aim)
    assert merges["second"] > 0
    assert 12 % merges["second"] != 0 or merges["second"] == 1  # no whole interval would do
    for arm in controls:
        assert made(arm) == merges
        assert arm["settings"] == {"counts": {"second": merges["second"]}}
    assert [arm["scores"] for arm in runner.run(config)["arms"]] == [
        arm["scores"] for arm in (aim, *controls)
    ]  # a rerun finds the arms that it wants


def test_a_run_that_matches_an_arm_without_merges(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    folder = finished_run(tmp_path_factory)
    arms = ["aim:s_init=100", "fixed:match=aim-s_init=100"]
    aim, fixed = runner.run(make_config(folder, arms, out=tmp_path / "out", steps=4))["arms"]
    assert made(aim) == made(fixed) == {"first": 0, "second": 0}
    assert fixed["settings"] == {"counts": {}}


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        (["fixed:match=aim", "aim"], r"match='aim' comes after this arm; put it before"),
        (["fixed:match=none"], r"match='none' is no arm of this run; they are fixed-match=none"),
        (
            [{"method": "fixed", "name": "f", "settings": {"match": "f"}}],
            r"arm 'f': match='f' is this arm itself",
        ),
        (
            ["seqlora", "fixed:match=seqlora"],
            r"match='seqlora' names an arm of 'seqlora', which never merges",
        ),
        (["aim", "kif:match=aim"], r"'match' belongs to the controls fixed and random"),
        (["aim", "fixed:match=aim,s_init=4"], r"setting 's_init' beside 'match'"),
        (["aim", "random:match=aim,s_hi=4"], r"setting 's_hi' beside 'match'"),
        (["aim", "random:match=aim,s_min=4"], r"setting 's_min' beside 'match'"),
        (["aim", "fixed:match=aim,merge_at_task_end=true"], r"setting 'merge_at_task_end' beside"),
        (["aim", "fixed:counts=3"], r"unknown setting 'counts'"),
    ],
)
def test_what_cannot_be_matched(tmp_path: Path, arms: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        runner.check_arms(make_config(tmp_path, arms))


def test_what_can_be_matched(tmp_path: Path) -> None:
    arms = ["kif", "single", "fixed:match=kif", "random:match=fixed-match=kif"]
    runner.check_arms(make_config(tmp_path, arms))
