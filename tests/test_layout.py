"""The Python and the C++ side describe the same bytes, and mean the same by the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from aimmerge_fast import kernels
from aimmerge_fast.config import MAX_MERGE_AT, MAX_WINDOW, POLICIES, SCHEDULES, AIMConfig
from aimmerge_fast.events import CODES
from aimmerge_fast.kernels import eager_controller, layout
from aimmerge_fast.kernels.arena import DTYPES
from aimmerge_fast.kernels.states import STATE_BYTES

_native = pytest.importorskip("aimmerge_fast._native", reason="there is no native module here")
STRUCTS = {"Config": layout.CONFIG, "State": layout.STATE, "Record": layout.RECORD}


def described(dtype: np.dtype[Any]) -> dict[str, tuple[int, int]]:
    """Offset and size of each field."""
    return {name: (field[1], field[0].itemsize) for name, field in (dtype.fields or {}).items()}


@pytest.mark.parametrize("struct", STRUCTS)
def test_every_field_has_one_place(struct: str) -> None:
    compiled, dtype = _native.layout(), STRUCTS[struct]
    assert list(compiled[struct].items()) == list(described(dtype).items())
    assert compiled["sizes"][struct] == dtype.itemsize
    assert sum(size for _, size in compiled[struct].values()) == dtype.itemsize, "no padding"


def test_config_and_state_follow_each_other() -> None:
    assert _native.layout()["sizes"]["StateBlock"] == layout.BLOCK.itemsize
    assert layout.BLOCK.fields["state"][1] == layout.CONFIG.itemsize


def test_the_ring_is_memory_of_its_own() -> None:
    state = kernels.new_state(AIMConfig())
    assert state.numel() == STATE_BYTES == layout.BLOCK.itemsize
    ring = kernels.ring(state)
    assert ring.ctypes.data == int(kernels.read_state(state)["state"]["ring"])
    assert ring.ctypes.data % 64 == 0
    assert ring.nbytes == layout.RING_SIZE * layout.RECORD.itemsize
    kernels.observe_(torch.tensor(1.5), state.clone())
    assert (ring["sequence"][0], ring["loss"][0]) == (1, 1.5)  # a copy posts to the same ring


def test_a_ring_is_used_again_once_its_state_is_gone() -> None:
    state = kernels.new_state(AIMConfig())
    kernels.observe_(torch.tensor(1.5), state, backend="eager")
    address = kernels.ring(state).ctypes.data
    others = [kernels.new_state(AIMConfig()) for _ in range(3)]
    assert address not in [kernels.ring(other).ctypes.data for other in others]
    del state
    again = kernels.new_state(AIMConfig())
    assert kernels.ring(again).ctypes.data == address
    assert not kernels.ring(again)["sequence"].any()


def test_a_state_without_its_ring_is_refused() -> None:
    state = kernels.new_state(AIMConfig())
    layout.block(state)["state"]["ring"] += 64
    with pytest.raises(RuntimeError, match="ring does not exist here"):
        kernels.ring(state)


def test_numbers_mean_the_same() -> None:
    numbers = _native.numbers()
    assert numbers["policies"] == {name: k for k, name in enumerate(POLICIES)}
    assert numbers["schedules"] == {name: k for k, name in enumerate(SCHEDULES)}
    assert numbers["codes"] == {name: k for k, name in enumerate(CODES)}
    assert numbers["halves"] == {"open": layout.OPEN, "close": layout.CLOSE}
    assert numbers["phases"] == {"idle": layout.IDLE, "merge_open": layout.MERGE_OPEN}
    dtypes = {str(dtype).removeprefix("torch."): k for dtype, k in DTYPES.items()}
    assert numbers["dtypes"] == dtypes
    limits = numbers["limits"]
    assert (limits["window"], limits["merge_at"]) == (MAX_WINDOW, MAX_MERGE_AT)


def test_eager_names_the_codes_in_the_same_order() -> None:
    names = ("COLLECT", "THRESHOLD", "QUIET", "ACTIVATE", "EARLY", "DUE", "DEFERRED", "FORCED")
    numbers = [getattr(eager_controller, name) for name in (*names, "FINAL", "MEASURE")]
    assert numbers == list(range(len(CODES)))
    assert max(numbers) < layout.OPEN < layout.CLOSE, "a half of a merge is no code of a step"


@pytest.mark.parametrize(
    "config",
    [
        AIMConfig(window=32, alpha_floor=0.25, seed=(1 << 63) - 1),
        AIMConfig(policy="released", adaptive=False, outer_init=7, cold_start=9, s_weight=11),
        AIMConfig(schedule="at", merge_at=tuple(range(1, 2 * MAX_MERGE_AT, 2)), alpha_new=0.125),
        AIMConfig(schedule="random", s_hi=1 << 24, s_max=1 << 24),
    ],
)
def test_every_setting_arrives(config: AIMConfig) -> None:
    """Each field that the controller reads is written as it was given; what is absent is zero."""
    fields = kernels.read_state(kernels.new_state(config))["config"]
    assert fields["policy"] == POLICIES.index(config.policy)
    assert fields["schedule"] == SCHEDULES.index(config.schedule)
    assert fields["merge_at_count"] == len(config.merge_at)
    padding = (0,) * (MAX_MERGE_AT - len(config.merge_at))
    assert tuple(fields["merge_at"]) == (*config.merge_at, *padding)
    for name in layout.CONFIG.names or ():
        if name in ("policy", "schedule", "merge_at_count", "merge_at"):
            continue
        value = getattr(config, name)
        if name == "alpha_new" and value is None:
            assert np.isnan(fields[name])
        else:
            assert fields[name] == (0 if value is None else value), name


def test_a_new_task_keeps_the_ring_and_forgets_the_rest() -> None:
    state = kernels.new_state(AIMConfig(), task=3, defer=True)
    fresh = kernels.read_state(kernels.new_state(AIMConfig(), task=4, defer=True)).copy()
    view = kernels.read_state(state)["state"]
    for _ in range(9):
        kernels.observe_(torch.tensor(2.0), state, backend="eager")
    kernels.advance_(torch.tensor([[3.0, 0.0]], dtype=torch.float64), state, backend="eager")
    address, posted = int(view["ring"]), int(view["sequence"])
    assert posted == 10
    kernels.begin_task(state, 4)
    assert (view["ring"], view["sequence"], view["defer"]) == (address, posted, 1)
    view["ring"], view["sequence"] = fresh["state"]["ring"], 0
    assert kernels.read_state(state).tobytes() == fresh.tobytes()
