"""The controller's transitions in plain Python: the eager twin of ``csrc/core/controller.h``.

Same functions in the same order, same operations in the same order, so the same bits. Python
floats are IEEE fp64, so only division by zero needs care: C gives Inf or NaN where Python raises.
"""

from __future__ import annotations

import math
from typing import Any

from aimmerge_fast.config import POLICIES, SCHEDULES
from aimmerge_fast.kernels.layout import CLOSE, IDLE, MERGE_OPEN, OPEN, Block, code_number

PAPER, RELEASED = range(len(POLICIES))
ADAPTIVE, MONITOR, FIXED, RAPID_PLUS, SLOW_PLUS, RANDOM, AT, SINGLE = range(len(SCHEDULES))
COLLECT, THRESHOLD, QUIET, ACTIVATE, EARLY, DUE, DEFERRED, FORCED, FINAL, MEASURE = map(
    code_number,
    (
        *("collect", "threshold", "monitor", "activate", "merge_early", "merge_due"),
        *("merge_deferred", "merge_forced", "merge_final", "measure"),
    ),
)
_MASK = (1 << 64) - 1
INT32_MAX = 0x7FFFFFFF


def divide(a: float, b: float) -> float:
    """IEEE division of a >= 0 by b >= 0."""
    if b != 0.0:
        return a / b
    return math.nan if a == 0.0 or math.isnan(a) else math.inf


def truncate_within(x: float, low: int, high: int) -> int:
    """int(x) clamped to [low, high]; NaN gives low."""
    if not x > low:
        return low
    return high if x >= high else int(x)


def random_interval(c: Any, task: int, merges: int) -> int:
    x = int(c["seed"]) + task * 0xD1B54A32D192ED03 + (merges + 1) * 0x9E3779B97F4A7C15 & _MASK
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & _MASK
    return int(c["s_min"]) + (x ^ x >> 31) % (int(c["s_hi"]) - int(c["s_min"]) + 1)


def first_interval(block: Block, task: int) -> int:
    """S at the start of a task."""
    c = block["config"]
    return random_interval(c, task, 0) if c["schedule"] == RANDOM else int(c["s_init"])


def is_merge(code: int) -> bool:
    return EARLY <= code <= FINAL


def last_sample(c: Any, S: int) -> int:
    two_thirds = 2 * S // 3
    return two_thirds + 1 if c["policy"] == RELEASED else max(1, two_thirds)


def memory_steps_now(c: Any, s: Any) -> int:
    if c["schedule"] == MONITOR:
        return 0
    return int(s["memory_steps"]) if c["policy"] == RELEASED else max(1, int(s["t"]) // 2)


def post(block: Block, ring: Any, values: tuple[Any, ...]) -> None:
    """Write one record; ``values`` are the fields after ``sequence``, in the record's order."""
    s = block["state"]
    number = int(s["sequence"]) + 1
    ring[(number - 1) % len(ring)] = (number, *values)
    s["sequence"] = number


# ---- one step --------------------------------------------------------------------------------


def judge(c: Any, s: Any, loss: float) -> int:
    if c["policy"] == PAPER and not c["use_forgetting_signal"]:
        return QUIET
    finite = math.isfinite(loss)
    n = last_sample(c, int(s["S"]))
    if s["t"] <= n:
        if finite:
            s["sum"] = float(s["sum"]) + loss
            s["samples"] += 1
        if s["t"] < n or s["samples"] == 0:
            return COLLECT
        s["threshold"] = float(c["gamma_forget"]) * (float(s["sum"]) / int(s["samples"]))
        s["has_threshold"] = 1
        return THRESHOLD
    if not finite or not s["has_threshold"]:
        return QUIET
    threshold = float(s["threshold"])
    active = loss >= threshold if c["policy"] == RELEASED else loss > threshold
    if not active:
        return QUIET
    s["F"] += 1
    return ACTIVATE


def merge_kind(s: Any) -> int:
    return EARLY if s["t"] < s["S"] else DUE if s["t"] == s["S"] else DEFERRED


def decide_adaptive(c: Any, s: Any, code: int) -> int:
    t, S = int(s["t"]), int(s["S"])
    if c["policy"] == RELEASED:
        forced = code != ACTIVATE and t > last_sample(c, S) and t >= 2 * S
        if forced:
            s["F"] += 1
        if s["F"] >= c["f_max"] or (t >= S and s["F"] >= 1):
            return FORCED if forced else merge_kind(s)
        return code
    if not c["use_forgetting_signal"]:
        return DUE if t >= S else code
    if not c["use_learning_signal"]:
        return merge_kind(s) if s["F"] >= 1 else code
    if s["F"] >= c["f_max"] and t < S:
        return EARLY
    if t >= S and s["F"] >= 1:
        return merge_kind(s)
    return FORCED if t >= 2 * S else code


def decide(c: Any, s: Any, code: int) -> int:
    schedule = c["schedule"]
    if schedule == ADAPTIVE:
        return decide_adaptive(c, s, code)
    if schedule == SINGLE:
        return code
    if schedule == AT:
        return DUE if s["g"] in c["merge_at"][: c["merge_at_count"]] else code
    if s["t"] < s["S"]:
        return code
    return MEASURE if schedule == MONITOR else DUE


def observe_step(block: Block, ring: Any, loss: float) -> None:
    """One optimiser update happened and its history loss is known."""
    c, s = block["config"], block["state"]
    s["t"] += 1
    s["g"] += 1
    s["loss"] = loss
    s["code"] = decide(c, s, judge(c, s, loss))
    acts = is_merge(s["code"]) or s["code"] == MEASURE
    threshold = s["threshold"] if s["has_threshold"] else math.nan
    steps = memory_steps_now(c, s) if acts else 0
    head = (loss, threshold, 0.0, s["t"], s["S"], s["F"], s["code"])
    post(block, ring, (*head, s["merges"], steps, s["S"], 0))


# ---- one merge -------------------------------------------------------------------------------


def remember(c: Any, s: Any, learning_signal: float) -> None:
    room = 1 if c["policy"] == RELEASED else int(c["window"]) + 1
    if s["history_count"] == room:
        s["history"][: room - 1] = s["history"][1:room].copy()
        s["history_count"] -= 1
    s["history"][s["history_count"]] = learning_signal
    s["history_count"] += 1


def count_trend(s: Any) -> None:
    values = [float(x) for x in s["history"][: s["history_count"]]]
    s["L_up"] = sum(b > a for a, b in zip(values, values[1:], strict=False))
    s["L_down"] = sum(b < a for a, b in zip(values, values[1:], strict=False))


def weigh_paper(c: Any, s: Any) -> tuple[float, float]:
    p_new = float(c["p_new_cold"]) if s["cold"] else int(s["L_up"]) / int(c["window"])
    p_past = int(s["F"]) / int(c["f_max"])
    if p_new == 0.0 and p_past == 0.0:
        return 0.5, 0.5
    floor = float(c["alpha_floor"])
    alpha1, alpha2 = p_new / (p_new + p_past), p_past / (p_new + p_past)
    if floor > 0.0:
        alpha1 = min(max(alpha1, floor), 1.0 - floor)
        alpha2 = 1.0 - alpha1
    return alpha1, alpha2


def weigh_released(c: Any, s: Any) -> tuple[float, float]:
    leans_to_past = s["F"] > 1
    if s["S"] <= c["s_weight"]:
        return (0.5, 0.5) if leans_to_past else (0.6, 0.4)
    return (0.4, 0.6) if leans_to_past else (0.5, 0.5)


def weigh(c: Any, s: Any) -> tuple[float, float]:
    alpha_new = float(c["alpha_new"])
    if c["schedule"] == MONITOR:
        return 1.0, 0.0
    if not math.isnan(alpha_new):
        return alpha_new, 1.0 - alpha_new
    ablated = c["policy"] == PAPER and not (c["use_learning_signal"] and c["use_forgetting_signal"])
    if c["schedule"] != ADAPTIVE or ablated:
        return 0.5, 0.5
    return weigh_released(c, s) if c["policy"] == RELEASED else weigh_paper(c, s)


def next_interval_paper(c: Any, s: Any) -> int:
    S = int(s["S"])
    if s["cold"] or not c["use_learning_signal"] or s["case_"] == 2:
        return S
    size = "large" if c["s_switch"] < S else "small"
    if s["case_"] == 1:
        return truncate_within(S / float(c[f"gamma_minus_{size}"]), int(c["s_min"]), S)
    return truncate_within(S * float(c[f"gamma_plus_{size}"]), 0, int(c["s_max"]))


def next_interval_released(c: Any, s: Any, previous: float) -> int:
    S, signal = int(s["S"]), float(s["lambda"])
    if s["cold"] or not c["adaptive"]:
        return S
    if signal >= previous:
        factor = 1.0 if signal == previous == 0.0 else divide(signal, previous)
        s["change_factor"] = factor = 1.0 if math.isnan(factor) else factor
        s_min = int(c["s_min"])
        shrunk = truncate_within(S / factor, s_min, max(S, s_min))
        return shrunk // 2 if shrunk >= c["s_switch"] else shrunk
    factor = divide(previous, signal) + (1.0 if S < c["s_switch"] else 0.5)
    s["change_factor"] = factor = 1.0 if math.isnan(factor) else factor
    return truncate_within(S * factor, 0, int(c["s_max"]))


def next_interval(c: Any, s: Any, previous: float) -> int:
    schedule, signal, first = int(c["schedule"]), float(s["lambda"]), s["merges"] == 1
    s_init, halved = int(c["s_init"]), max(int(c["s_min"]), int(c["s_init"]) // 2)
    if schedule == ADAPTIVE:
        released = c["policy"] == RELEASED
        return next_interval_released(c, s, previous) if released else next_interval_paper(c, s)
    if schedule == RAPID_PLUS:
        return halved if not first and signal > previous else s_init
    if schedule == SLOW_PLUS:
        return halved if not first and signal < previous else s_init
    if schedule == RANDOM:
        return random_interval(c, int(s["task"]), int(s["merges"]))
    return int(s["S"])


def learning_signal(c: Any, s: Any, l1: float, kind: int) -> float:
    unplanned = kind in (FINAL, MEASURE) or c["schedule"] in (AT, RANDOM, SINGLE)
    steps = int(s["S"] if c["policy"] == RELEASED and not unplanned else s["t"])
    return l1 / steps if steps > 0 else 0.0


def restart_interval(s: Any) -> None:
    for name in ("t", "F", "samples", "has_threshold", "sum", "code"):
        s[name] = 0


def record_merge(c: Any, s: Any, l1: float, kind: int) -> None:
    previous = float(s["history"][s["history_count"] - 1]) if s["history_count"] else 0.0
    s["merges"] += 1
    s["lambda"] = learning_signal(c, s, l1, kind)
    remember(c, s, float(s["lambda"]))
    if c["policy"] == PAPER:
        s["cold"] = s["merges"] <= c["window"]
        count_trend(s)
        if not s["cold"]:
            s["case_"] = 1 if s["L_up"] > s["L_down"] else 2 if s["L_up"] == s["L_down"] else 3
    else:
        s["cold"] = s["merges"] - 1 <= c["cold_start"]
    s["alpha1"], s["alpha2"] = weigh(c, s)
    s["S"] = next_interval(c, s, previous)
    if c["policy"] == RELEASED:
        ratio = int(c["outer_init"]) / int(c["s_init"])
        s["memory_steps"] = truncate_within(int(s["S"]) * ratio, 1, INT32_MAX)


def open_merge(block: Block, ring: Any, l1: float, bad: int) -> None:
    """theta_j was snapshotted; l1 = sum |theta_j - anchor|, bad = its non-finite entries."""
    c, s = block["config"], block["state"]
    S, F, code = int(s["S"]), int(s["F"]), int(s["code"])
    kind = code if is_merge(code) or code == MEASURE else FINAL
    s["l1"] = l1
    s["elapsed"] = s["t"]
    for name in ("cold", "L_up", "L_down", "case_"):
        s[name] = 0
    s["change_factor"] = math.nan
    s["reject"] = min(bad, INT32_MAX)
    if s["reject"]:
        s["alpha1"], s["alpha2"] = 1.0, 0.0
    else:
        record_merge(c, s, l1, kind)
    trend = int(s["cold"]) << 15 | int(s["L_up"]) << 16 | int(s["L_down"]) << 24
    packed = OPEN | kind << 8 | int(s["case_"]) << 12 | trend
    steps = s["memory_steps"] if c["policy"] == RELEASED else 0
    head = (s["alpha1"], s["alpha2"], l1, s["t"], S, F, packed)
    post(block, ring, (*head, s["merges"], steps, s["S"], s["reject"]))
    restart_interval(s)
    s["phase"] = MERGE_OPEN


def close_merge(block: Block, ring: Any, bad: int) -> None:
    """The fused values were stored; bad = non-finite ones among them."""
    s = block["state"]
    s["reject"] = min(bad, INT32_MAX)
    s["phase"] = IDLE
    head = (0.0, math.nan, 0.0, 0, s["S"], 0, CLOSE)
    post(block, ring, (*head, s["merges"], 0, s["S"], s["reject"]))


def changes_live(c: Any) -> bool:
    return bool(c["schedule"] != MONITOR)
