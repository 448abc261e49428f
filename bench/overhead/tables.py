"""Results as text for people and as JSON for programs."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from overhead.ceiling import Ceiling
from overhead.measure import IMPORTANCE, Measured

#: The paper's epoch: 1,000 records at batch 8.
STEPS_PER_EPOCH = 1_000 // 8
#: S' >= 2 always (a threshold step is never judged), so at most every second step merges.
MERGES_PER_EPOCH = STEPS_PER_EPOCH // 2
CACHES = ("cold", "hot")
#: Of a GPU's merge: so many times the floor, and 4 µs for each of its two launches.
TARGET_FACTOR, TARGET_LAUNCHES_US = 1.15, 8.0


def engine_minutes(hook_us: float, merge_us: float) -> float:
    """Minutes per epoch that the engine takes at the highest rate the controller allows.

    ``merge_us``: kernels and the merger's own work around them.
    """
    return (STEPS_PER_EPOCH * hook_us + MERGES_PER_EPOCH * merge_us) / 60e6


def cases(measured: list[Measured], ceiling: Ceiling, device: torch.device) -> list[dict[str, Any]]:
    """One record per cache state, backbone and backend, the cold ones first."""
    return [
        _case(one, backend, cache, ceiling, device)
        for cache in CACHES
        for one in measured
        for backend in one.host_us
    ]


def _case(
    one: Measured, backend: str, cache: str, ceiling: Ceiling, device: torch.device
) -> dict[str, Any]:
    times = {name: s.headline(device) for name, s in one.spreads[cache].items()}
    us = times[backend]
    gbs = one.bytes_per_merge / us / 1e3
    return {
        "backbone": one.backbone.name,
        "backend": backend,
        "entries": one.backbone.entries(),
        "tensors": one.tensors,
        "us": six(us),
        "gbs": six(gbs),
        "ceiling_fraction": six(gbs / ceiling.best),
        "released_us": six(times.get("released")),
        "foreach_us": six(times.get("foreach")),
        "compiled_us": six(times.get("compiled")),
        "host_us": six(one.host_us[backend]),
        "launches": one.launches[backend],
        "cache": cache,
        "engine_minutes_per_epoch": six(
            engine_minutes(one.host_us[backend], us + one.merge_host_us[backend])
        ),
        "table6_overhead_minutes": one.backbone.table6_overhead,
        **_gpu_fields(one, backend, ceiling),
    }


def _gpu_fields(one: Measured, backend: str, ceiling: Ceiling) -> dict[str, Any]:
    """What only a GPU has: the target, and host and device together (``wall``)."""
    if not one.wall:
        return {}
    walls = {name: spread.p50 for name, spread in one.wall.items()}
    return {
        "floor_us": six(floor_us(one.bytes_per_merge, ceiling)),
        "target_us": six(target_us(one.bytes_per_merge, ceiling)),
        "wall_us": six(walls[backend]),
        **{f"{arm}_wall_us": six(walls.get(arm)) for arm in ("released", "foreach", "compiled")},
    }


def floor_us(bytes_per_merge: int, ceiling: Ceiling) -> float:
    """The merge's bytes at the ceiling's bandwidth."""
    return bytes_per_merge / ceiling.best / 1e3


def target_us(bytes_per_merge: int, ceiling: Ceiling) -> float:
    """What a GPU's merge may take."""
    return TARGET_FACTOR * floor_us(bytes_per_merge, ceiling) + TARGET_LAUNCHES_US


def details(measured: list[Measured], ceiling: Ceiling) -> dict[str, Any]:
    """What the one-line summary leaves out: all spreads, launches and skipped arms."""
    return {
        "ceiling": dataclasses.asdict(ceiling),
        "measured": [
            {
                "backbone": one.backbone.name,
                "spreads_us": {
                    cache: {arm: dataclasses.asdict(s) for arm, s in spreads.items()}
                    for cache, spreads in one.spreads.items()
                },
                "launches": one.launches,
                "skipped": one.skipped,
                "wall_us": {arm: dataclasses.asdict(s) for arm, s in one.wall.items()},
            }
            for one in measured
        ],
    }


def ceiling_text(ceiling: Ceiling) -> str:
    """The ceiling in one line, GB/s of counted bytes."""
    streamed = f"{ceiling.nontemporal:.1f}" if ceiling.nontemporal else "not run"
    return (
        f"ceiling, cold, GB/s: triad {ceiling.plain:.1f}, non-temporal triad {streamed}, "
        f"copy {ceiling.copy:.1f} ({ceiling.note}); percentages are of {ceiling.best:.1f}"
    )


def backbone_text(one: Measured, ceiling: Ceiling, device: torch.device) -> str:
    """The table of one backbone: every arm, cold and hot, and what an epoch costs."""
    lines = [
        f"{one.backbone.title}: {one.backbone.entries():,} entries in {one.tensors} tensors, "
        f"{one.bytes_per_merge / 1e6:.1f} MB per merge",
        f"  {'cache':5} {'arm':10} {'p20 µs':>10} {'p50 µs':>10} {'p80 µs':>10} {'GB/s':>7} "
        f"{'ceiling':>8} {'launches':>8} {'hook µs':>8}",
    ]
    for cache in CACHES:
        arms = [name for name in one.spreads[cache] if name != IMPORTANCE]
        lines += [_row(one, cache, arm, ceiling, device) for arm in arms]
    lines += [f"  {arm}: not run, {reason}" for arm, reason in one.skipped.items()]
    scores = one.spreads["cold"][IMPORTANCE].headline(device)
    lines.append(f"  released, its unused importance scores apart: {scores:,.0f} µs per step, cold")
    for backend in one.host_us:
        lines += [_ratios(one, backend, device), _epoch(one, backend, device)]
        lines += [_wall(one, backend, ceiling)] if one.wall else []
    return "\n".join(lines)


def _row(one: Measured, cache: str, arm: str, ceiling: Ceiling, device: torch.device) -> str:
    spread = one.spreads[cache][arm]
    gbs = one.bytes_per_merge / spread.headline(device) / 1e3
    hook = f"{one.host_us[arm]:8.2f}" if arm in one.host_us else f"{'-':>8}"
    return (
        f"  {cache:5} {arm:10} {spread.p20:10,.1f} {spread.p50:10,.1f} {spread.p80:10,.1f} "
        f"{gbs:7.1f} {gbs / ceiling.best:8.0%} {_launched(one, arm):>8} {hook}"
    )


def _launched(one: Measured, arm: str) -> str:
    launched = one.launches[arm]
    return "not seen" if launched is None else f"{launched:,}"


def _wall(one: Measured, backend: str, ceiling: Ceiling) -> str:
    case = _gpu_fields(one, backend, ceiling)
    walls = ", ".join(f"{arm} {spread.p50:,.1f}" for arm, spread in one.wall.items())
    return (
        f"  {backend}: floor {case['floor_us']:,.1f} µs, target {case['target_us']:,.1f}; host and "
        f"device together, cold, µs: {walls}"
    )


def _ratios(one: Measured, backend: str, device: torch.device) -> str:
    times = {name: spread.headline(device) for name, spread in one.spreads["cold"].items()}
    rivals = [name for name in times if name not in one.host_us and name != IMPORTANCE]
    shares = ", ".join(f"{name} {times[name] / times[backend]:.2f} x" for name in rivals)
    return f"  {backend}, cold: as long as ours takes, {shares}"


def _epoch(one: Measured, backend: str, device: torch.device) -> str:
    us = one.spreads["cold"][backend].headline(device)
    minutes = engine_minutes(one.host_us[backend], us + one.merge_host_us[backend])
    paper = one.backbone.table6_overhead
    beside = "no row" if paper is None else f"{paper:.1f} min on 8 V100"
    return f"  {backend}: {minutes:.6f} engine minutes per epoch; Table 6's overhead: {beside}"


def six(value: float | None) -> float | None:
    """Six significant digits: more than any clock gives."""
    return None if value is None else float(f"{value:.6g}")
