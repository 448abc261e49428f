"""Predictions and score of one task."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from aimmerge_fast.cl.encode import Encoder
from aimmerge_fast.cl.generate import generate
from aimmerge_fast.cl.metrics import exact_match, rouge_l

if TYPE_CHECKING:
    from aimmerge_fast.cl.data import Record, TaskData

METRICS = ("accuracy", "rougeL")


@dataclasses.dataclass(frozen=True)
class TaskScore:
    """Score of one task: mean over its records, 0 to 100.

    Attributes:
        predictions: one a record, in order: ``id``, ``prediction``, ``reference``, and ``correct``
            (bool, metric accuracy) or ``rougeL`` (0 to 1).
    """

    score: float
    items: int
    predictions: list[dict[str, Any]]

    @classmethod
    def of(cls, predictions: list[dict[str, Any]], metric: str) -> TaskScore:
        """The score that judged predictions make; at least one."""
        if not predictions:
            raise ValueError("no predictions to score")
        key = "correct" if metric == "accuracy" else metric
        total = math.fsum(prediction[key] for prediction in predictions)
        return cls(100 * total / len(predictions), len(predictions), predictions)


def evaluate(
    model: Any,
    encoder: Encoder,
    task: TaskData,
    records: Sequence[Record],
    *,
    batch: int = 25,
    max_new_tokens: int = 128,
) -> TaskScore:
    """Generate greedily and score by ``task.metric``.

    For accuracy, generation ends after twice as many tokens as the longest reference has (at least
    8): what is still running by then is wrong. Raises ``ValueError`` for no records or an
    unknown metric, ``RuntimeError`` if rougeL is asked for and rouge-score is not installed.
    """
    if task.metric not in METRICS:
        raise ValueError(
            f"task {task.name!r}: unknown metric {task.metric!r}; known are {', '.join(METRICS)}"
        )
    if not records:
        raise ValueError(f"task {task.name!r} has no records to score")
    if task.metric == "rougeL":
        rouge_l("", "")  # a missing package is said before anything is generated
    else:
        every = (*records, *task.test)  # a part of them is scored as all of them would be
        longest = max(encoder.answer_length(record["output"]) for record in every)
        max_new_tokens = min(max_new_tokens, max(8, 2 * longest))
    texts = generate(model, encoder, records, batch=batch, max_new_tokens=max_new_tokens)
    predictions = []
    for place, (record, text) in enumerate(zip(records, texts, strict=True)):
        reference = record["output"]
        found = {"id": record.get("id", place), "prediction": text, "reference": reference}
        if task.metric == "accuracy":
            found["correct"] = exact_match(text, reference)
        else:
            found["rougeL"] = rouge_l(text, reference)
        predictions.append(found)
    return TaskScore.of(predictions, task.metric)
