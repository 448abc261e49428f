"""Runs that are killed at any moment and go on give the bits of one that was not."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from aimmerge_fast.cl import arm, context, plain, progress, runner
from aimmerge_fast.durable.tree import load_tree
from aimmerge_fast.kernels.layout import offset_in_state
from tests.cl.tiny import ARMS, finished_run, make_config

FOLDERS = ("seqlora-s42", "replay-s42", "aim-s_init=2-s42")


class Killed(BaseException):
    """As a signal would be: nothing catches it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory)


@pytest.fixture
def kill(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """``kill(n)``: the n-th event from now on is the last. Events: a step that is shown, before and
    after a save, before an evaluation."""
    left = [0]

    def tick() -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    def around(home: Any, name: str, before: bool, after: bool) -> None:
        original = getattr(home, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if before:
                tick()
            result = original(*args, **kwargs)
            if after:
                tick()
            return result

        monkeypatch.setattr(home, name, wrapped)

    around(progress.View, "step", True, False)
    around(arm.Arm, "_save", True, True)
    around(plain.PlainTask, "_save", True, True)
    around(context.Context, "evaluate", True, False)

    def start(events: int) -> None:
        left[0] = events

    return start


def run_with_kills(config: Any, kill: Callable[[int], None], after: Iterator[int]) -> int:
    """How often it was killed before it came to its end."""
    for times in itertools.count():
        kill(next(after))
        try:
            runner.run(config)
        except Killed:
            continue
        return times
    raise AssertionError


def content(out: Path, name: str) -> dict[str, Any]:
    """Everything of an arm that must repeat; file contents by their path."""
    home = out / name
    entry = json.loads((home / "arm.json").read_text())
    for other in ("seconds", "commits", "single"):  # clocks; those that were known by then
        entry.pop(other)
    state = load_tree(home / "state.safetensors")
    state["progress"].pop("seconds")
    address = offset_in_state("ring")  # of this process's memory
    for block in (state["method"].get("merger") or {}).get("states", []):
        block[address : address + 8] = 0
    files = [home / "events.jsonl", *home.glob("predictions/*/*"), *home.glob("adapters/*/*.safe*")]
    return {
        "entry": entry,
        "state": flat(state),
        **{str(path.relative_to(home)): path.read_bytes() for path in files},
    }


def flat(tree: Any) -> Any:
    """Tensors as their type, shape and bytes, so that ``==`` compares bits."""
    if isinstance(tree, Tensor):
        return str(tree.dtype), tuple(tree.shape), tree.reshape(-1).view(torch.uint8).tolist()
    if isinstance(tree, dict):
        return {key: flat(value) for key, value in tree.items()}
    return [flat(value) for value in tree] if isinstance(tree, list) else tree


def same(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert two[key] == value, key


@pytest.mark.parametrize("after", [(4, 9, 6), (5, 7, 13)])
def test_killed_runs_end_with_the_same_bits(
    folder: Path, tmp_path: Path, kill: Callable[[int], None], after: tuple[int, ...]
) -> None:
    config = make_config(folder, ARMS, out=tmp_path / "out")
    assert run_with_kills(config, kill, itertools.cycle(after)) >= 5
    for name in FOLDERS:
        found = content(config.out, name)
        assert len(found) == 8  # entry, state, events, three predictions, two adapters
        same(content(folder / "out", name), found)
    merges = json.loads((config.out / FOLDERS[2] / "arm.json").read_text())["merges"]
    assert sum(sum(task["merges"].values()) for task in merges["tasks"]) >= 1


def test_killed_runs_with_every_option(
    folder: Path, tmp_path: Path, kill: Callable[[int], None]
) -> None:
    """The best state, the monitor, the recipe, tasks alone, scores before training."""
    fields: dict[str, Any] = {"select": "best", "select_every": 2, "monitor": True}
    fields |= {"single": True, "initial": True, "evaluate": "all", "bucket": 2, "micro_batch": 2}
    whole = make_config(folder, "replay+memory", out=tmp_path / "whole", **fields)
    kill(0)
    runner.run(whole)
    config = make_config(folder, "replay+memory", out=tmp_path / "killed", **fields)
    assert run_with_kills(config, kill, itertools.cycle((6, 11))) >= 3
    same(content(whole.out, "replay+memory-s42"), content(config.out, "replay+memory-s42"))
    found, expected = (
        json.loads((run.out / "results.json").read_text())["arms"][0] for run in (config, whole)
    )
    assert found["single"] == expected["single"]
    assert None not in found["single"]
    assert found["metrics"] == expected["metrics"]
    assert None not in (found["metrics"]["FWT"], found["metrics"]["BWT"])


def test_what_a_kill_leaves_in_the_event_file_is_cut_off(folder: Path, tmp_path: Path) -> None:
    """Events after the save are made again; an arm that saved nothing starts a new file."""
    config = make_config(folder, ARMS[2], out=tmp_path / "out")
    home = config.out / FOLDERS[2]
    runner.claim(config.out, runner.prepare(config))
    home.mkdir(parents=True)
    (home / "events.jsonl").write_text('{"event": "from before"}\n{"event": "unfin')
    runner.run(config)
    assert (home / "events.jsonl").read_bytes() == (
        folder / "out" / FOLDERS[2] / "events.jsonl"
    ).read_bytes()


def test_a_damaged_state_is_not_trained_on(
    folder: Path, tmp_path: Path, kill: Callable[[int], None]
) -> None:
    config = make_config(folder, "seqlora", out=tmp_path / "out")
    kill(20)
    with pytest.raises(Killed):
        runner.run(config)
    state = config.out / "seqlora-s42" / "state.safetensors"
    damaged = bytearray(state.read_bytes())
    damaged[-1] ^= 1
    state.write_bytes(damaged)
    kill(0)
    with pytest.raises(ValueError, match=r"saved state .*seqlora-s42/state.safetensors is damaged"):
        runner.run(config)


def test_rows_are_known_without_reading_the_state(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    original = arm.ArmFolder.saved

    def saved(self: arm.ArmFolder) -> Any:
        reads.append(self.path.name)
        return original(self)

    monkeypatch.setattr(arm.ArmFolder, "saved", saved)
    results = runner.run(make_config(folder, ARMS, out=tmp_path / "out"))
    assert reads == list(FOLDERS)  # once each: whether there is something to go on from
    expected = json.loads((folder / "out/results.json").read_text())["arms"]
    assert [e["rows"] for e in results["arms"]] == [e["rows"] for e in expected]
