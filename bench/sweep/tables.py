"""A sweep as text for people and as JSON for programs."""

from __future__ import annotations

from typing import Any

import torch

from overhead.ceiling import Ceiling
from overhead.tables import floor_us, six, target_us
from sweep.cases import BY_ENTRIES
from sweep.fit import FLAT, SLOPE, bandwidth_bound
from sweep.measure import FOREACH, Measured

Record = dict[str, Any]


def record(one: Measured, ceiling: Ceiling, device: torch.device) -> Record:
    """One case for programs; without figures where it was skipped."""
    case = one.case
    head = {"backend": one.backend, "grows": case.grows, "entries": case.entries}
    head |= {"tensors": case.tensors, "skipped": one.skipped}
    if one.skipped:
        return head
    spread, floor = one.cold[one.backend], floor_us(one.bytes_per_merge, ceiling)
    us = spread.headline(device)
    rival = one.cold.get(FOREACH)
    found = {
        **head,
        "us": six(us),
        "p20_us": six(spread.p20),
        "p50_us": six(spread.p50),
        "p80_us": six(spread.p80),
        "gbs": six(one.bytes_per_merge / us / 1e3),
        "ceiling_fraction": six(floor / us),
        "floor_us": six(floor),
        "bandwidth_bound": bandwidth_bound(floor),
        "host_us": six(one.host_us),
        "merge_host_us": six(one.merge_host_us),
        "launches": one.launches,
        "foreach_us": six(rival.headline(device)) if rival else None,
    }
    return found | (_gpu_fields(one, us, ceiling) if device.type == "cuda" else {})


def _gpu_fields(one: Measured, us: float, ceiling: Ceiling) -> Record:
    """What only a GPU has: the target, and host and device together (``wall``)."""
    target, rival = target_us(one.bytes_per_merge, ceiling), one.wall.get(FOREACH)
    return {
        "target_us": six(target),
        "within_target": us <= target,
        "wall_us": six(one.wall[one.backend].p50),
        "foreach_wall_us": six(rival.p50) if rival else None,
    }


def title(one: Measured) -> str:
    """The head of the table that begins with this case."""
    held = f"{one.case.tensors:,} tensors"
    if one.case.grows != BY_ENTRIES:
        held = f"{one.case.entries:,} entries"
    return (
        f"{one.backend}: growth in {one.case.grows}, {held}, cold\n"
        f"  {one.case.grows:>13} {'p20 µs':>11} {'p50 µs':>11} {'p80 µs':>11} {'GB/s':>7} "
        f"{'ceiling':>8} {'launches':>8} {'hook µs':>8} {'around µs':>10}"
    )


def row(one: Measured, ceiling: Ceiling, device: torch.device) -> str:
    """One case in a line."""
    grown = one.case.entries if one.case.grows == BY_ENTRIES else one.case.tensors
    found = record(one, ceiling, device)
    if found["skipped"]:
        return f"  {grown:13,} not run: {found['skipped']}"
    launched = "not seen" if found["launches"] is None else f"{found['launches']:,}"
    text = (
        f"  {grown:13,} {found['p20_us']:11,.1f} {found['p50_us']:11,.1f} {found['p80_us']:11,.1f} "
        f"{found['gbs']:7,.1f} {found['ceiling_fraction']:8.0%} {launched:>8} "
        f"{found['host_us']:8.2f} {found['merge_host_us']:10,.1f}"
    )
    if "target_us" in found:
        verdict = "ok" if found["within_target"] else "MISSED"
        text += f"  target {found['target_us']:,.1f}: {verdict}; wall {found['wall_us']:,.1f}"
    if found["foreach_us"]:
        text += f"  foreach {found['foreach_us']:,.1f} µs"
    return text


def entries_text(growth: Record) -> str:
    """The growth in entries in words."""
    if growth["slope"] is None:
        judged = "no slope over bandwidth-bound sizes: fewer than two"
    else:
        judged = (
            f"slope {growth['slope']:.3f} over the {growth['bandwidth_bound_sizes']} "
            f"bandwidth-bound sizes, from {growth['bandwidth_bound_from']:,}"
        )
    every = "-" if growth["slope_all"] is None else f"{growth['slope_all']:.3f}"
    least, most = SLOPE
    return (
        f"entries: {judged} (target {least:.2f} to {most:.2f}: {_word(growth['linear'])}); "
        f"{every} over all {growth['sizes']}"
    )


def tensors_text(growth: Record) -> str:
    """The growth in tensors in words."""
    if growth["tensors_ratio"] is None:
        return "tensors: not run"
    return (
        f"tensors: largest by smallest time {growth['tensors_ratio']:.2f} over "
        f"{growth['tensor_counts']} numbers (target at most {FLAT}: {_word(growth['flat'])}); "
        f"foreach {growth['foreach_tensors_ratio']:.2f}"
    )


def _word(verdict: bool | None) -> str:
    return {True: "ok", False: "MISSED", None: "too few sizes"}[verdict]
