"""The results as a picture: time per merge by arm, and our share of the bandwidth ceiling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

#: Least share of the ceiling that a cold merge on a CPU is meant to reach.
_TARGET = 0.85
_RIVALS = {"released": "released_us", "foreach": "foreach_us", "compiled": "compiled_us"}
_GREYS = dict(zip(_RIVALS, ("#c8c8c8", "#a0a0a0", "#707070"), strict=True))
_COLOURS = ("#c0392b", "#2471a3", "#1e8449", "#b7950b")
Bars = dict[str, dict[str, float]]  # label -> backbone -> value


def draw(summary: dict[str, Any], path: Path) -> None:
    """Write a PNG of the cold cases of ``summary`` (the JSON record of a run).

    Raises: ImportError when matplotlib is not installed, OSError when ``path`` is not writable.
    """
    from matplotlib.figure import Figure

    cold = [case for case in summary["cases"] if case["cache"] == "cold"]
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    times, shares = figure.subplots(1, 2, width_ratios=(3, 2))
    times.set_yscale("log")
    _bars(times, _times(cold), "{:,.0f}")
    times.set_ylabel("time per merge, cold (µs, log scale)")
    times.yaxis.set_major_formatter("{x:,.0f}")
    _bars(shares, _shares(cold), "{:.0%}")
    shares.axhline(1.0, color="black", linewidth=0.8)
    if summary["device"].startswith("CPU"):
        shares.axhline(_TARGET, color="black", linewidth=0.8, linestyle="--")
    shares.set_ylabel(f"share of the {summary['ceiling_gbs']:.0f} GB/s ceiling (dashes: target)")
    for axes in (times, shares):
        axes.set_xlabel("backbone (LoRA r = 8 on q and v, fp32)")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=5, fontsize=8, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"One merge without its memory steps. {summary['device']}", fontsize=10)
    figure.savefig(path, format="png", dpi=150)


def _times(cold: list[dict[str, Any]]) -> Bars:
    bars: Bars = {}
    for case in cold:
        for arm, key in _RIVALS.items():
            if case[key] is not None:
                bars.setdefault(arm, {})[case["backbone"]] = case[key]
    for case in cold:
        bars.setdefault(f"ours: {case['backend']}", {})[case["backbone"]] = case["us"]
    return bars


def _shares(cold: list[dict[str, Any]]) -> Bars:
    bars: Bars = {}
    for case in cold:
        shares = bars.setdefault(f"ours: {case['backend']}", {})
        shares[case["backbone"]] = case["ceiling_fraction"]
    return bars


def _bars(axes: Any, bars: Bars, label_format: str) -> None:
    names = list(dict.fromkeys(name for values in bars.values() for name in values))
    colours = dict(zip((label for label in bars if label not in _GREYS), _COLOURS, strict=False))
    width = 0.84 / max(1, len(bars))
    for index, (label, values) in enumerate(bars.items()):
        places = [names.index(name) + (index + 0.5) * width - 0.42 for name in values]
        colour = _GREYS.get(label) or colours.get(label)
        drawn = axes.bar(places, list(values.values()), width=width, label=label, color=colour)
        axes.bar_label(drawn, fmt=label_format, fontsize=6, rotation=90, padding=2)
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.margins(y=0.12)
