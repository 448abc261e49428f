"""Places and numbers that the kernels share with ``csrc/core``, as constants of the compiler.

A place is an index in units of the field's own size, from the start of the controller's bytes; all
are taken from ``layout`` and ``tiles``, whose tests hold them to the C++ structs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import triton.language as tl

from aimmerge_fast.config import MAX_MERGE_AT, MAX_WINDOW, POLICIES, SCHEDULES
from aimmerge_fast.kernels import layout, tiles
from aimmerge_fast.kernels.layout import BLOCK, CONFIG, RECORD, STATE, code_number


def _place(dtype: np.dtype[Any], field: str, start: int = 0) -> tl.constexpr:
    """Index of a field of ``dtype``, which itself starts ``start`` bytes into the memory."""
    assert dtype.fields is not None
    kind, offset = dtype.fields[field][:2]
    place, rest = divmod(start + offset, kind.base.itemsize)
    assert rest == 0
    return tl.constexpr(place)


def _config(field: str) -> tl.constexpr:
    return _place(CONFIG, field)


def _state(field: str) -> tl.constexpr:
    assert BLOCK.fields is not None
    return _place(STATE, field, BLOCK.fields["state"][1])


def _record(field: str) -> tl.constexpr:
    return _place(RECORD, field)


def _number(names: Sequence[str], name: str) -> tl.constexpr:
    return tl.constexpr(names.index(name))


def _code(name: str) -> tl.constexpr:
    return tl.constexpr(code_number(name))


# ---- settings ----------------------------------------------------------------------------------

C_GAMMA_FORGET = _config("gamma_forget")
C_GAMMA_PLUS_SMALL = _config("gamma_plus_small")
C_GAMMA_MINUS_SMALL = _config("gamma_minus_small")
C_GAMMA_PLUS_LARGE = _config("gamma_plus_large")
C_GAMMA_MINUS_LARGE = _config("gamma_minus_large")
C_P_NEW_COLD = _config("p_new_cold")
C_ALPHA_FLOOR = _config("alpha_floor")
C_ALPHA_NEW = _config("alpha_new")
C_SEED = _config("seed")
C_POLICY = _config("policy")
C_SCHEDULE = _config("schedule")
C_S_INIT = _config("s_init")
C_S_MIN = _config("s_min")
C_S_MAX = _config("s_max")
C_S_HI = _config("s_hi")
C_WINDOW = _config("window")
C_F_MAX = _config("f_max")
C_S_SWITCH = _config("s_switch")
C_USE_LEARNING_SIGNAL = _config("use_learning_signal")
C_USE_FORGETTING_SIGNAL = _config("use_forgetting_signal")
C_OUTER_INIT = _config("outer_init")
C_COLD_START = _config("cold_start")
C_S_WEIGHT = _config("s_weight")
C_ADAPTIVE = _config("adaptive")
C_MERGE_AT_COUNT = _config("merge_at_count")
C_MERGE_AT = _config("merge_at")

# ---- state -------------------------------------------------------------------------------------

S_SUM = _state("sum")
S_THRESHOLD = _state("threshold")
S_LOSS = _state("loss")
S_L1 = _state("l1")
S_LAMBDA = _state("lambda")
S_CHANGE_FACTOR = _state("change_factor")
S_ALPHA1 = _state("alpha1")
S_ALPHA2 = _state("alpha2")
S_PARTIAL_L1 = _state("partial_l1")
S_PARTIAL_BAD = _state("partial_bad")
S_HISTORY = _state("history")
S_SEQUENCE = _state("sequence")
S_RING = _state("ring")
S_RING_SIZE = _state("ring_size")
S_TASK = _state("task")
S_S = _state("S")
S_T = _state("t")
S_F = _state("F")
S_G = _state("g")
S_SAMPLES = _state("samples")
S_HAS_THRESHOLD = _state("has_threshold")
S_HISTORY_COUNT = _state("history_count")
S_MERGES = _state("merges")
S_MEMORY_STEPS = _state("memory_steps")
S_CODE = _state("code")
S_PHASE = _state("phase")
S_REJECT = _state("reject")
S_ELAPSED = _state("elapsed")
S_COLD = _state("cold")
S_L_UP = _state("L_up")
S_L_DOWN = _state("L_down")
S_CASE = _state("case_")
S_DEFER = _state("defer")

# ---- a record of the ring ----------------------------------------------------------------------

R_SEQUENCE = _record("sequence")
R_LOSS = _record("loss")
R_THRESHOLD = _record("threshold")
R_L1 = _record("l1")
R_T = _record("t")
R_S = _record("S")
R_F = _record("F")
R_CODE = _record("code")
R_MERGE = _record("merge")
R_MEMORY_STEPS = _record("memory_steps")
R_NEXT_S = _record("next_S")
R_REJECT = _record("reject")
RECORD_BYTES = tl.constexpr(RECORD.itemsize)

# ---- a tile and the scratch of a table ---------------------------------------------------------

T_ADDRESS = _place(tiles.TILE, "address")
T_OFFSET = _place(tiles.TILE, "offset")
T_COUNT = _place(tiles.TILE, "count")
T_FLAGS = _place(tiles.TILE, "flags")
TILE_BYTES = tl.constexpr(tiles.TILE.itemsize)
ROW = tl.constexpr(1024)  # entries; a tile is four
assert tiles.ENTRIES == 4096
WIDE_FLAG = tl.constexpr(tiles.WIDE)
DTYPE_MASK = tl.constexpr(tiles.WIDE - 1)
BAD_BYTE = tl.constexpr(8)  # of the scratch: the count of non-finite entries
PARTIALS_BYTE = tl.constexpr(tiles.SCRATCH_HEADER)

# ---- numbers -----------------------------------------------------------------------------------

FLOAT32, BFLOAT16, FLOAT16 = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
ROOM = tl.constexpr(64)  # of a vector that holds merge_at or the history; a power of two
assert MAX_MERGE_AT <= 64
assert MAX_WINDOW < 64

PAPER, RELEASED = _number(POLICIES, "paper"), _number(POLICIES, "released")
ADAPTIVE = _number(SCHEDULES, "adaptive")
MONITOR = _number(SCHEDULES, "monitor")
RAPID_PLUS = _number(SCHEDULES, "rapid+")
SLOW_PLUS = _number(SCHEDULES, "slow+")
RANDOM = _number(SCHEDULES, "random")
AT = _number(SCHEDULES, "at")
SINGLE = _number(SCHEDULES, "single")

COLLECT = _code("collect")
THRESHOLD = _code("threshold")
QUIET = _code("monitor")
ACTIVATE = _code("activate")
EARLY = _code("merge_early")
DUE = _code("merge_due")
DEFERRED = _code("merge_deferred")
FORCED = _code("merge_forced")
FINAL = _code("merge_final")
MEASURE = _code("measure")
OPEN, CLOSE = tl.constexpr(layout.OPEN), tl.constexpr(layout.CLOSE)
IDLE, MERGE_OPEN = tl.constexpr(layout.IDLE), tl.constexpr(layout.MERGE_OPEN)
LARGEST = tl.constexpr(0x7FFFFFFF)

#: All of the above. The compiler's disk cache keys on the value of a plain name that a kernel uses,
#: not on the attributes of a module; ``block_at``, which every kernel calls, uses this one.
LAYOUT = tl.constexpr(
    repr([(name, each.value) for name, each in globals().items() if isinstance(each, tl.constexpr)])
)
