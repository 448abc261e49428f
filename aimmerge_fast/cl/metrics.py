"""Scores of predictions, and what is read off a matrix of scores."""

from __future__ import annotations

import functools
import importlib
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

#: ``scores[j][i]``: task i after stage j, 0 to 100; None where it was not tested. A run that was
#: not finished has fewer rows than columns; training on all tasks at once (MTL) has one row.
Scores = Sequence[Sequence[float | None]]


def exact_match(prediction: str, reference: str) -> bool:
    """Equal after lower-casing; the prediction is stripped of ``</s>``, ``<pad>`` and white space.

    Nothing else is normalised (algorithm.md D.5); the reference is stripped too.
    """
    for token in ("</s>", "<pad>"):
        prediction = prediction.replace(token, "")
    return prediction.strip().lower() == reference.strip().lower()


def rouge_l(prediction: str, reference: str) -> float:
    """F-measure of rougeL with the Porter stemmer (package rouge-score), 0 to 1."""
    return float(_rouge().score(reference, prediction)["rougeL"].fmeasure)


@functools.cache
def _rouge() -> Any:
    try:
        module: Any = importlib.import_module("rouge_score.rouge_scorer")
    except ImportError:
        raise RuntimeError(
            "metric rougeL needs the package rouge-score; pip install 'aimmerge_fast[eval]'"
        ) from None
    return module.RougeScorer(["rougeL"], use_stemmer=True)


def mean_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """(mean, sample standard deviation); None as deviation of a single value."""
    if not values:
        raise ValueError("mean of no values")
    mean = math.fsum(values) / len(values)
    return mean, statistics.stdev(values) if len(values) > 1 else None


def overall(scores: Scores) -> float | None:
    """OP, also called AP or Last: ``mean_i a[K][i]``, all K tasks after the last stage.

    None if a task was not tested then, or if 2 to K - 1 stages are there (a run not finished). One
    row over all tasks is training on all at once.
    """
    tasks = _tasks(scores)
    return _mean(scores[-1]) if scores and len(scores) in (1, tasks) else None


def average_seen(scores: Scores) -> float | None:
    """EasyCL's Avg: ``mean_k mean_{i<=k} a[k][i]``, the tasks seen so far, after each stage."""
    tasks = _tasks(scores)
    if not scores or len(scores) != tasks:
        return None
    return _mean([_mean(row[: stage + 1]) for stage, row in enumerate(scores)])


def backward_transfer(scores: Scores, variant: str = "aimmerging") -> float | None:
    """BWT: how much later tasks changed the earlier ones; negative is forgetting.

    ``aimmerging``, ``easycl``, ``gem``: ``sum_{i<K} (a[K][i] - a[i][i]) / (K - 1)``.
    ``sapt``: the same sum divided by K. None for one task or an unfinished matrix.
    """
    _known(variant, ("aimmerging", "sapt", "easycl", "gem"))
    tasks = _tasks(scores)
    if tasks < 2 or len(scores) != tasks:
        return None
    mean = _mean([_difference(scores[-1][i], scores[i][i]) for i in range(tasks - 1)])
    if mean is None:
        return None
    return mean * (tasks - 1) / tasks if variant == "sapt" else mean


def forward_transfer(
    scores: Scores,
    variant: str = "aimmerging",
    single: Sequence[float | None] | None = None,
    initial: Sequence[float | None] | None = None,
) -> float | None:
    """FWT: what earlier tasks did for later ones.

    ``aimmerging``: ``mean_{i<=K} (a[i][i] - single[i])``, ``single`` being the scores of models
    trained on one task alone. ``sapt``: ``mean_i a[i][i] - c``; c is a constant in its script
    (50.94), here the mean of ``single``, so both agree. ``easycl``:
    ``mean_{2<=i<=K} (a[i-1][i] - initial[i])``, ``initial`` being the scores before training.
    ``gem``: the same, with the scores of randomly initialised weights as ``initial``. None if the
    matrix is unfinished, or what the variant compares with was not given or not tested.
    """
    _known(variant, ("aimmerging", "sapt", "easycl", "gem"))
    tasks = _tasks(scores)
    alone = variant in ("aimmerging", "sapt")
    base = single if alone else initial
    if base is None or not scores or len(scores) != tasks:
        return None
    if len(base) != tasks:
        raise ValueError(f"{len(base)} scores to compare with, for {tasks} tasks")
    if alone:
        return _mean([_difference(scores[i][i], base[i]) for i in range(tasks)])
    return _mean([_difference(scores[i - 1][i], base[i]) for i in range(1, tasks)])


def forgetting(scores: Scores, variant: str = "sapt") -> float | None:
    """``mean_{i<K} (max_j a[j][i] - a[K][i])`` over stages ``j < K``; positive is forgetting.

    ``sapt``: j from i on, since the task was trained. ``gem``: every j at which the task was
    tested. The other variants define none. None for one task or an unfinished matrix.
    """
    _known(variant, ("sapt", "gem"))
    tasks = _tasks(scores)
    if tasks < 2 or len(scores) != tasks:
        return None
    losses = []
    for i in range(tasks - 1):
        first = i if variant == "sapt" else 0
        tested = [row[i] for row in scores[first : tasks - 1]]
        best = max((score for score in tested if score is not None), default=None)
        losses.append(_difference(best, scores[-1][i]))
    return _mean(losses)


#: Every named metric: (function, variant or None); the plain names are the paper's definitions.
METRICS: dict[str, tuple[Callable[..., float | None], str | None]] = {
    "OP": (overall, None),
    "BWT": (backward_transfer, "aimmerging"),
    "FWT": (forward_transfer, "aimmerging"),
    "forgetting": (forgetting, "sapt"),
    "BWT_sapt": (backward_transfer, "sapt"),
    "FWT_sapt": (forward_transfer, "sapt"),
    "Avg_easycl": (average_seen, None),
    "BWT_easycl": (backward_transfer, "easycl"),
    "FWT_easycl": (forward_transfer, "easycl"),
    "BWT_gem": (backward_transfer, "gem"),
    "FWT_gem": (forward_transfer, "gem"),
    "forgetting_gem": (forgetting, "gem"),
}


def summary(
    scores: Scores,
    single: Sequence[float | None] | None = None,
    initial: Sequence[float | None] | None = None,
    random: Sequence[float | None] | None = None,
) -> dict[str, float | None]:
    """Every metric of ``METRICS`` by name; None where it is not defined (yet).

    ``random``: scores of randomly initialised weights, which only ``FWT_gem`` needs.
    """
    found = {}
    for name, (function, variant) in METRICS.items():
        if variant is None:
            found[name] = function(scores)
        elif function is forward_transfer:
            found[name] = function(scores, variant, single, random if variant == "gem" else initial)
        else:
            found[name] = function(scores, variant)
    return found


def metric(name: str) -> tuple[Callable[..., float | None], str | None]:
    """An entry of ``METRICS``; ``ValueError`` that lists the known for another name."""
    _known(name, tuple(METRICS), "metric")
    return METRICS[name]


def _tasks(scores: Scores) -> int:
    """Number of tasks, 0 of no rows; ``ValueError`` for what is no matrix."""
    if not scores:
        return 0
    widths = {len(row) for row in scores}
    if len(widths) != 1 or not 1 <= len(scores) <= max(widths):
        raise ValueError(
            "scores must be 1 to K rows (stages) of K tasks each, "
            f"got {len(scores)} rows of lengths {sorted(widths)}"
        )
    return widths.pop()


def _known(name: str, known: Sequence[str], kind: str = "variant") -> None:
    if name not in known:
        raise ValueError(f"unknown {kind} {name!r}; known are {', '.join(known)}")


def _difference(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    if not present or len(present) < len(values):
        return None
    return math.fsum(present) / len(present)
