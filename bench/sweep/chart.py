"""A sweep as a picture: time per merge over entries and over tensors, both axes logarithmic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sweep.cases import BY_ENTRIES, BY_TENSORS


def draw(record: dict[str, Any], path: Path) -> None:
    """Write a PNG of the JSON record of a run.

    Raises: ImportError when matplotlib is not installed, OSError when ``path`` is not writable.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    for axes, grows in zip(figure.subplots(1, 2), (BY_ENTRIES, BY_TENSORS), strict=True):
        axes.loglog()
        cases = [c for c in record["cases"] if c["grows"] == grows and not c["skipped"]]
        for backend in dict.fromkeys(case["backend"] for case in cases):
            ours = [case for case in cases if case["backend"] == backend]
            _line(axes, ours, grows, "us", f"ours: {backend}", "o-")
        first = [case for case in cases if case["backend"] == cases[0]["backend"]]
        _line(axes, first, grows, "floor_us", "its bytes at the ceiling", "k--")
        _line(axes, first, grows, "foreach_us", "torch._foreach_*", "s-")
        axes.set_xlabel(grows)
        axes.set_ylabel("time per merge, cold (µs)")
        if cases:
            axes.legend(fontsize=8, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"One merge without its memory steps. {record['device']}", fontsize=10)
    figure.savefig(path, format="png", dpi=150)


def _line(
    axes: Any, cases: list[dict[str, Any]], grows: str, key: str, label: str, style: str
) -> None:
    points = [(case[grows], case[key]) for case in cases if case[key] is not None]
    if points:
        axes.plot(*zip(*points, strict=True), style, label=label, markersize=4)
