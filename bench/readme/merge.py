"""Block ``merge``: one merge per backbone beside its rivals, a table per device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpu.merge import COMPILED, FOREACH, HOOK_US, RELEASED, on_device, ratio
from overhead.backbones import BACKBONES
from overhead.ours import KERNELS, LAUNCHES
from readme import records
from readme.words import CPU, GPU, NOT_RUN, figure, origin, percent, table, times, two_digits

RIVALS = {
    "released": "released sequence",
    "foreach": "`torch._foreach_*`",
    "compiled": "flat + `torch.compile`",
}
#: Least share of the ceiling on a CPU, and least times as long as ours that the rivals take.
CPU_SHARE = 0.85
LEAST = {
    CPU: {"released": 6.0, "foreach": 3.0, "compiled": 0.95},
    GPU: {"released": RELEASED, "foreach": FOREACH, "compiled": COMPILED},
}
Case = dict[str, Any]


def block(folder: Path) -> list[str]:
    return [
        *records.lines(folder, "merge_overhead_cpu.json", lambda record: device(record, CPU)),
        "",
        *records.lines(
            folder,
            "gpu_merge_overhead.json",
            lambda record: device(record, GPU),
            absent="GPU: not run on a GPU.",
        ),
    ]


def device(record: dict[str, Any], kind: str) -> list[str]:
    """Caption, a row for each backbone, and the targets."""
    caption = _caption(record, kind)
    cold = [case for case in record["cases"] if case["cache"] == "cold"]
    found = dict.fromkeys(case["backend"] for case in cold)
    backends = sorted(found, key=lambda name: (*KERNELS, name).index(name))
    cases = {(case["backbone"], case["backend"]): case for case in cold}
    head = _head(backends, kind)
    rows = [_row(name, backends, cases, kind) for name in BACKBONES]
    return [
        caption,
        "",
        *table(head, [[*row, *[NOT_RUN] * (len(head) - len(row))] for row in rows]),
        "",
        targets(cold, kind),
    ]


def _caption(record: dict[str, Any], kind: str) -> str:
    unit = "ms, p20" if kind == CPU else "µs, median: the device alone / host and device together"
    load = str(record["details"]["load"]).partition(";")[0]
    return (
        f"{origin(record, kind)}. Times in {unit}; ceiling {figure(record['ceiling_gbs'])} GB/s; "
        f"{load}."
    )


def _head(backends: list[str], kind: str) -> list[str]:
    ours, *others = backends
    head = ["backbone", "entries in tensors", f"`{ours}`"]
    head += ["target, device"] if kind == GPU else []
    head += ["of ceiling", *RIVALS.values(), *(f"`{name}`" for name in others)]
    head += ["launches"] if kind == GPU else []
    return [*head, "host µs an update", "engine min per epoch / Table 6"]


def _row(
    name: str, backends: list[str], cases: dict[tuple[str, str], Case], kind: str
) -> list[str]:
    """Its first cell alone where the backbone was not run."""
    title, ours = BACKBONES[name].title, cases.get((name, backends[0]))
    if ours is None:
        return [title]
    paper = ours["table6_overhead_minutes"]
    row = [title, f"{ours['entries']:,} in {ours['tensors']:,}", _time(ours, "", kind)]
    row += [figure(ours["target_us"])] if kind == GPU else []
    row += [percent(ours["ceiling_fraction"]), *(_rival(ours, arm, kind) for arm in RIVALS)]
    others = [cases.get((name, backend)) for backend in backends[1:]]
    row += [NOT_RUN if other is None else _time(other, "", kind) for other in others]
    row += [_launches(ours)] if kind == GPU else []
    minutes = two_digits(ours["engine_minutes_per_epoch"])
    return [*row, figure(ours["host_us"]), f"{minutes} / {'–' if paper is None else paper}"]


def _time(case: Case, arm: str, kind: str) -> str:
    """Of an arm, "" for ours: ms on a CPU; µs on a GPU, the device's and with the host's."""
    before = f"{arm}_" if arm else ""
    us = case[f"{before}us"]
    if us is None:
        return NOT_RUN
    return figure(us / 1e3) if kind == CPU else f"{figure(us)} / {figure(case[f'{before}wall_us'])}"


def _rival(case: Case, arm: str, kind: str) -> str:
    taken, by = _time(case, arm, kind), _ratio(case, arm, kind)
    return taken if by is None else f"{taken} ({times(by)})"


def _ratio(case: Case, arm: str, kind: str) -> float | None:
    """How many times as long as ours; on a GPU host and device together."""
    return on_device(case, arm) if kind == CPU else ratio(case, arm)


def _launches(case: Case) -> str:
    return "not seen" if case["launches"] is None else f"{case['launches']:,}"


def targets(cold: list[Case], kind: str) -> str:
    """What is asked of our kernels, and where it was missed."""
    asked = [f"{CPU_SHARE:.0%}".replace("%", " %") + " of the ceiling"]
    if kind == GPU:
        asked = ["the time above", f"{LAUNCHES} launches"]
    asked += [f"{RIVALS[arm]} at least {least:g} ×" for arm, least in LEAST[kind].items()]
    if kind == GPU:
        asked += [f"{RIVALS['compiled']} on the device alone at least 1 ×"]
    asked += [f"at most {HOOK_US:g} µs of host time an update"]
    judged = [case for case in cold if case["backend"] in KERNELS]
    missed = []
    for case in judged:
        title = f"{BACKBONES[case['backbone']].title} `{case['backend']}`"
        missed += [f"{title} {what}" for what in _missed(case, kind)]
    verdict = f"Missed: {'; '.join(missed)}" if missed else "All met" if judged else "Not run"
    return f"Targets: {', '.join(asked)}. **{verdict}.**"


def _missed(case: Case, kind: str) -> Iterator[str]:
    if kind == CPU and case["ceiling_fraction"] < CPU_SHARE:
        yield f"{figure(100 * case['ceiling_fraction'])} % of the ceiling"
    if kind == GPU and case["us"] > case["target_us"]:
        yield f"{figure(case['us'])} of {figure(case['target_us'])} µs"
    if kind == GPU and case["launches"] != LAUNCHES:
        yield f"{_launches(case)} launches"
    for arm, least in LEAST[kind].items():
        by = _ratio(case, arm, kind)
        if by is None or by < least:
            yield f"{RIVALS[arm]} {NOT_RUN if by is None else times(by)}"
    alone = on_device(case, "compiled")
    if kind == GPU and alone is not None and alone < 1.0:
        yield f"{RIVALS['compiled']} on the device alone {times(alone)}"
    if case["host_us"] > HOOK_US:
        yield f"{figure(case['host_us'])} µs of host time"
