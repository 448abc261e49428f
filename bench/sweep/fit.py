"""How a merge grows: a slope for entries, a ratio for tensors, and whether these are as meant.

N counts as bandwidth-bound when ``floor >= 10 x TARGET_LAUNCHES_US``, ``floor`` being 32 N bytes at
the ceiling of the run: then launches may add a tenth of it at most. Below that a GPU's merge is
mostly its two launches and cannot be linear in N, so the slope that is judged is over the
bandwidth-bound sizes; the one over all sizes stands beside it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from overhead.tables import TARGET_LAUNCHES_US, six
from sweep.cases import BY_ENTRIES, BY_TENSORS

#: Log-log slope of time over entries that is "linear".
SLOPE = (0.95, 1.05)
#: Largest by smallest time over the numbers of tensors that is "flat".
FLAT = 1.15
_FLOOR_BY_LAUNCHES = 10.0
#: Fewer than a decade in half decades says nothing.
_FEWEST = 3

Point = tuple[float, float]


def bandwidth_bound(floor_us: float) -> bool:
    """Whether a merge with this floor is bound by bandwidth rather than by its launches."""
    return floor_us >= _FLOOR_BY_LAUNCHES * TARGET_LAUNCHES_US


def slope(points: Sequence[Point]) -> float | None:
    """Slope of log y over log x by least squares; None for fewer than two points."""
    if len(points) < 2:
        return None
    xs, ys = ([math.log(point[axis]) for point in points] for axis in (0, 1))
    return statistics.linear_regression(xs, ys).slope


def growth(backend: str, cases: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the records of ``tables.record`` say of one backend.

    ``linear`` and ``flat`` are None where fewer than three sizes were run.
    """
    run = [case for case in cases if case["backend"] == backend and not case["skipped"]]
    by_entries = [case for case in run if case["grows"] == BY_ENTRIES]
    by_tensors = [case for case in run if case["grows"] == BY_TENSORS]
    bound = [case for case in by_entries if case["bandwidth_bound"]]
    judged = slope(_points(bound))
    ratio = _ratio(by_tensors, "us")
    return {
        "backend": backend,
        "sizes": len(by_entries),
        "slope_all": six(slope(_points(by_entries))),
        "bandwidth_bound_sizes": len(bound),
        "bandwidth_bound_from": min((case["entries"] for case in bound), default=None),
        "slope": six(judged),
        "slope_target": SLOPE,
        "linear": _verdict(judged, *SLOPE, len(bound)),
        "tensor_counts": len(by_tensors),
        "tensors_ratio": six(ratio),
        "tensors_ratio_target": FLAT,
        "flat": _verdict(ratio, 1.0, FLAT, len(by_tensors)),
        "foreach_tensors_ratio": six(_ratio(by_tensors, "foreach_us")),
    }


def _verdict(value: float | None, least: float, most: float, count: int) -> bool | None:
    if value is None or count < _FEWEST:
        return None
    return least <= value <= most


def _points(cases: Sequence[dict[str, Any]]) -> list[Point]:
    return [(case["entries"], case["us"]) for case in cases]


def _ratio(cases: Sequence[dict[str, Any]], key: str) -> float | None:
    times = [case[key] for case in cases]
    return max(times) / min(times) if times else None
