"""The results as a picture: time per merge by arm, and our share of the bandwidth ceiling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

#: Least share of the ceiling that a cold merge on a CPU is meant to reach.
_TARGET = 0.85
_RIVALS = {"released": "released_us", "foreach": "foreach_us", "compiled": "compiled_us"}


def draw(summary: dict[str, Any], path: Path) -> None:
    """Write a PNG of the cold cases of ``summary`` (the JSON record of a run).

    Raises: ImportError when matplotlib is not installed, OSError when ``path`` is not writable.
    """
    from matplotlib.figure import Figure

    cold = [case for case in summary["cases"] if case["cache"] == "cold"]
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    times, shares = figure.subplots(1, 2, width_ratios=(3, 2))
    names = list(dict.fromkeys(case["backbone"] for case in cold))
    _bars(times, names, _times(cold))
    times.set_yscale("log")
    times.set_ylabel("time per merge, cold (µs, log scale)")
    _bars(shares, names, _shares(cold))
    shares.axhline(1.0, color="black", linewidth=0.8)
    if summary["device"].startswith("CPU"):
        shares.axhline(_TARGET, color="black", linewidth=0.8, linestyle="--", label="target")
    shares.set_ylabel(f"share of the {summary['ceiling_gbs']:.0f} GB/s ceiling")
    for axes in (times, shares):
        axes.set_xlabel("backbone (LoRA r = 8 on q and v, fp32)")
        axes.legend(fontsize=8)
    figure.suptitle(f"One merge without its memory steps, {summary['device']}", fontsize=10)
    figure.savefig(path, format="png", dpi=150)


def _times(cold: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """arm -> backbone -> µs."""
    bars: dict[str, dict[str, float]] = {}
    for case in cold:
        for arm, key in _RIVALS.items():
            if case[key] is not None:
                bars.setdefault(arm, {})[case["backbone"]] = case[key]
        bars.setdefault(f"ours: {case['backend']}", {})[case["backbone"]] = case["us"]
    return bars


def _shares(cold: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """backend -> backbone -> share of the ceiling."""
    bars: dict[str, dict[str, float]] = {}
    for case in cold:
        shares = bars.setdefault(f"ours: {case['backend']}", {})
        shares[case["backbone"]] = case["ceiling_fraction"]
    return bars


def _bars(axes: Any, names: list[str], bars: dict[str, dict[str, float]]) -> None:
    width = 0.8 / max(1, len(bars))
    for index, (label, values) in enumerate(bars.items()):
        places = [names.index(name) + (index + 0.5) * width - 0.4 for name in values]
        axes.bar(places, list(values.values()), width=width, label=label)
    axes.set_xticks(range(len(names)), names, fontsize=8)
