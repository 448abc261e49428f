"""How a task is scored: the published metric of the known tasks, judged by content for others."""

from __future__ import annotations

import re
from collections.abc import Sequence

from aimmerge_fast.cl.data.prompts import QUESTIONS
from aimmerge_fast.cl.data.records import Record

METRICS = ("accuracy", "rougeL")
_SUPERNI_LABELLED = ("task363", "task875", "task1687")
_TRACE = {
    **dict.fromkeys(("C-STANCE", "FOMC", "NumGLUE-cm", "NumGLUE-ds"), ("accuracy", "")),
    **dict.fromkeys(("MeetingBank", "ScienceQA"), ("rougeL", "")),
    "Py150": ("accuracy", "TRACE scores Py150 by edit similarity; here by exact match"),
    "20Minuten": ("rougeL", "TRACE scores 20Minuten by SARI; here by Rouge-L"),
}
_CLASSES = 50  # an unknown task with more distinct answers than this has free text
_WORDS = 6


def metric_of(task: str, train: Sequence[Record], labels: Sequence[str]) -> tuple[str, str]:
    """``("accuracy" | "rougeL", note)``; the note is empty where the metric is the published one.

    Accuracy: exact match, lower-cased. SuperNI: accuracy for 363, 875 and 1687, Rouge-L otherwise.
    """
    if task in QUESTIONS:
        return "accuracy", ""
    if task in _TRACE:
        return _TRACE[task]
    if re.fullmatch(r"task\d{3,}", task):
        return ("accuracy" if task in _SUPERNI_LABELLED else "rougeL"), ""
    if labels:
        return "accuracy", ""
    if classes(train):
        return "accuracy", ""
    return "rougeL", "free-text answers: scored by Rouge-L"


def classes(train: Sequence[Record]) -> tuple[str, ...]:
    """The distinct answers where they are few, short and repeated; else none."""
    answers = sorted({record["output"].strip() for record in train})
    few = len(answers) <= _CLASSES and 2 * len(answers) <= len(train)
    return tuple(answers) if few and all(len(a.split()) <= _WORDS for a in answers) else ()
