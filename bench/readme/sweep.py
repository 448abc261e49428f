"""Block ``sweep``: how a merge grows with entries and with tensors, a table per device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from overhead.ours import KERNELS, LAUNCHES
from readme import records
from readme.words import CPU, GPU, NOT_RUN, figure, one_line, origin, table
from sweep.cases import BY_ENTRIES, BY_TENSORS, TENSORS

FEWEST, MOST = min(TENSORS), max(TENSORS)
ENDS = f"at {FEWEST:,} / {MOST:,}"
Case = dict[str, Any]


def block(folder: Path) -> list[str]:
    return [
        *records.lines(
            folder,
            "merge_sweep_cpu.json",
            lambda record: device(record, CPU),
            absent="CPU: not run.",
        ),
        "",
        *records.lines(
            folder,
            "gpu_merge_sweep.json",
            lambda record: device(record, GPU),
            absent="GPU: not run on a GPU.",
        ),
    ]


def device(record: dict[str, Any], kind: str) -> list[str]:
    """Caption, a row for each backend, targets and what was not run."""
    unit = "ms, p20," if kind == CPU else "µs, median,"
    load = str(record["load"]).partition(";")[0]
    head = [
        *("", "slope over entries, all sizes"),
        *(["bandwidth-bound sizes"] if kind == GPU else []),
        *(f"{unit} {ENDS} tensors", "largest ÷ smallest", "`torch._foreach_*`: the same"),
        *(f"host µs of an update {ENDS}", f"host µs around a merge {ENDS}"),
    ]
    lines = [
        f"{origin(record, kind)}; ceiling {figure(record['ceiling_gbs'])} GB/s; {load}.",
        "",
        *table(head, [_row(growth, record["cases"], kind) for growth in record["slopes"]]),
    ]
    if kind == GPU:  # the rule of what is bound by bandwidth, and flat, is a GPU's
        lines += ["", _targets(record)]
    skipped = [case for case in record["cases"] if case["skipped"]]
    if skipped:
        lines += ["", f"Not run: {'; '.join(map(_skipped, skipped))}."]
    return lines


def _row(growth: dict[str, Any], cases: list[Case], kind: str) -> list[str]:
    run = [c for c in cases if c["backend"] == growth["backend"] and not c["skipped"]]
    sizes = [case["entries"] for case in run if case["grows"] == BY_ENTRIES]
    by_tensors = {case["tensors"]: case for case in run if case["grows"] == BY_TENSORS}
    ends = [by_tensors.get(tensors) for tensors in (FEWEST, MOST)]
    scale = 1e3 if kind == CPU else 1.0

    def at_ends(key: str, by: float = 1.0) -> str:
        return " / ".join(NOT_RUN if end is None else figure(end[key] / by) for end in ends)

    bound = _slope(growth["slope"])
    if growth["slope"] is not None:
        bound += f" ({growth['bandwidth_bound_sizes']}, from {growth['bandwidth_bound_from']:,} on)"
    every = _slope(growth["slope_all"])
    if growth["slope_all"] is not None:
        every += f" ({growth['sizes']}, {min(sizes):,} to {max(sizes):,})"
    ratios = (growth["tensors_ratio"], growth["foreach_tensors_ratio"])
    return [
        f"`{growth['backend']}`",
        *([every, bound] if kind == GPU else [every]),
        *(at_ends("us", scale), *map(figure, ratios)),
        *(at_ends("host_us"), at_ends("merge_host_us")),
    ]


def _slope(value: float | None) -> str:
    return NOT_RUN if value is None else f"{value:.3f}"


def _skipped(case: Case) -> str:
    return f"{_what(case)}: {one_line(case['skipped'])}"


def _targets(record: dict[str, Any]) -> str:
    asked = dict.fromkeys(
        f"slope {_range(growth['slope_target'])} over the bandwidth-bound sizes, largest by "
        f"smallest at most {growth['tensors_ratio_target']}"
        for growth in record["slopes"]
    )
    growths = [growth for growth in record["slopes"] if growth["backend"] in KERNELS]
    missed = [what for growth in growths for what in _missed(growth)]
    missed += [what for case in record["cases"] for what in _late(case)]
    few = [
        f"`{growth['backend']}` {'slope' if key == 'linear' else 'largest by smallest'}"
        for growth in growths
        for key in ("linear", "flat")
        if growth[key] is None
    ]
    verdict = f"Missed: {'; '.join(missed)}" if missed else "None missed" if few else "All met"
    asked = [*asked, f"the time of each number of entries, {LAUNCHES} launches"]
    text = f"Targets: {'; '.join(asked)}. **{verdict}.**"
    return f"{text} Too few sizes to say: {', '.join(few)}." if few else text


def _range(ends: list[float]) -> str:
    least, most = ends
    return f"{least:.2f} to {most:.2f}"


def _missed(growth: dict[str, Any]) -> list[str]:
    """A verdict is None where too few sizes were run."""
    backend, missed = growth["backend"], []
    if growth["linear"] is False:
        missed.append(f"`{backend}` slope {growth['slope']:.3f}")
    if growth["flat"] is False:
        missed.append(f"`{backend}` largest by smallest {growth['tensors_ratio']:.3f}")
    return missed


def _late(case: Case) -> list[str]:
    """Of a GPU; where tensors grow, the ratio is judged and not the time."""
    if case["skipped"] or case["backend"] not in KERNELS:
        return []
    missed = []
    if case["grows"] == BY_ENTRIES and not case["within_target"]:
        missed.append(f"{figure(case['us'])} of {figure(case['target_us'])} µs")
    if case["launches"] != LAUNCHES:
        seen = "no" if case["launches"] is None else f"{case['launches']:,}"
        missed.append(f"{seen} launches seen")
    return [f"{_what(case)} {each}" for each in missed]


def _what(case: Case) -> str:
    return f"`{case['backend']}` {case['entries']:,} entries in {case['tensors']:,} tensors"
