"""The few statistics of a report. Values that are not finite are no samples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from aimmerge_fast.cl import metrics

#: Fewest points that a correlation is given for.
FEWEST = 3


def mean_sd(values: Iterable[float | None]) -> tuple[float | None, float | None]:
    """Mean, and the sample standard deviation (n - 1) of at least two values."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    return metrics.mean_sd(known) if known else (None, None)


def mean(values: Iterable[float | None]) -> float | None:
    return mean_sd(values)[0]


def pooled_sd(first: Sequence[float], second: Sequence[float]) -> float | None:
    """sqrt(((n1 - 1) s1^2 + (n2 - 1) s2^2) / (n1 + n2 - 2)); None below two values each."""
    parts = [(len(values) - 1, mean_sd(values)[1]) for values in (first, second)]
    if any(sd is None for _, sd in parts):
        return None
    freedom = sum(n for n, _ in parts)
    return math.sqrt(sum(n * (sd or 0.0) ** 2 for n, sd in parts) / freedom)


def pearson(x: Sequence[float], y: Sequence[float]) -> tuple[float | None, int]:
    """Correlation and number of finite pairs; None below ``FEWEST`` or where one is constant."""
    pairs = _finite(x, y)
    n = len(pairs)
    if n < FEWEST:
        return None, n
    sxx, syy, sxy, _, _ = _moments(pairs)
    if sxx == 0 or syy == 0:
        return None, n
    return max(-1.0, min(1.0, sxy / math.sqrt(sxx) / math.sqrt(syy))), n


def least_squares(x: Sequence[float], y: Sequence[float]) -> tuple[float, float] | None:
    """(slope, intercept) of the line of least squares; None below two different ``x``."""
    pairs = _finite(x, y)
    if len({a for a, _ in pairs}) < 2:
        return None
    sxx, _, sxy, mean_x, mean_y = _moments(pairs)
    slope = sxy / sxx
    return slope, mean_y - slope * mean_x


def _finite(x: Sequence[float], y: Sequence[float]) -> list[tuple[float, float]]:
    pairs = zip(x, y, strict=True)
    return [(a, b) for a, b in pairs if math.isfinite(a) and math.isfinite(b)]


def _moments(pairs: Sequence[tuple[float, float]]) -> tuple[float, float, float, float, float]:
    """Sums of squares about the means (xx, yy, xy), and the means."""
    mean_x = math.fsum(a for a, _ in pairs) / len(pairs)
    mean_y = math.fsum(b for _, b in pairs) / len(pairs)
    return (
        math.fsum((a - mean_x) ** 2 for a, _ in pairs),
        math.fsum((b - mean_y) ** 2 for _, b in pairs),
        math.fsum((a - mean_x) * (b - mean_y) for a, b in pairs),
        mean_x,
        mean_y,
    )
