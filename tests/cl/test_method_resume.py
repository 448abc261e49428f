"""Every method, saved in the middle of a stage and gone on with elsewhere: the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from aimmerge_fast.cl.methods import METHODS, Stage
from aimmerge_fast.cl.methods.monitor import Monitor
from aimmerge_fast.cl.methods.recipe import MemoryEpochs
from tests.cl.bare import (
    FIRST,
    SECOND,
    adapter,
    begin,
    bench,
    restore,
    run_updates,
    save,
    task,
    train,
)

THIRD = task("third", 3)
STEPS, CUT = 11, 7  # with S = 3, the cut is one update into an interval
SETTINGS = {
    **{"aim": {"s_init": 3}, "aim-released": {"s_init": 4}, "aim-ls": {"gamma_forget": 0.9}},
    **{"aim-fs": {"s_init": 3}, "aim-mgm": {"s_init": 3}, "aim-ifm": {"s_init": 3}},
    **{"kif": {"s_init": 3}, "fixed": {"s_init": 3}, "random": {"s_hi": 4}},
}
WRAPPED = ("seqlora+memory", "inclora+memory+monitor", "replay+monitor")


def made(name: str) -> Any:
    base, *wraps = name.split("+")
    method = bench().method(base, **SETTINGS.get(base, {}))
    for wrap in wraps:
        method = MemoryEpochs(method, 2) if wrap == "memory" else Monitor(method)
    return method


def same(one: Any, other: Any) -> bool:
    """Trees of JSON values and tensors, to the bit (but for the address of the ring)."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        keys = one.keys() - {"states"}
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in keys)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("name", [*METHODS, *WRAPPED])
def test_saved_inside_a_stage(name: str, tmp_path: Path) -> None:
    """Third stage of three, so that what earlier ones left behind must come back, too."""
    whole = made(name)
    for index, data in enumerate((FIRST, SECOND)):
        train(whole, data, index, 4)
    stage = Stage(THIRD.name, (THIRD,))
    begin(whole, stage, 2)
    with whole.task(stage, 2):
        run_updates(whole, stage, 2, 0, CUT)
        save(tmp_path / "state", whole)
        run_updates(whole, stage, 2, CUT, STEPS)
    whole.end_stage(stage, 2)

    torch.manual_seed(0)  # global randomness is not what a run goes on
    again = made(name)
    restore(tmp_path / "state", again)
    with again.task(stage, 2):
        run_updates(again, stage, 2, CUT, STEPS)
    again.end_stage(stage, 2)

    one, two = adapter(whole.trainee), adapter(again.trainee)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert whole.merges() == again.merges()
    assert same(whole.state_dict(), again.state_dict())
    if name in ("kif", "aim-fs", "aim-mgm", "fixed"):
        assert whole.merges() > 0
