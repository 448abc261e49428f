"""Prompts and answer options of the benchmark tasks, as the AimMerging records have them.

Classification: ``<question> Choose one from the option. Option: l1, l2.``, a newline, the fields,
``Answer:``. SuperNI: ``[INS] <definition>``, ``[IN] <input>``, ``[OUT]``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from aimmerge_fast.cl.data.records import Record

_NLI = 'What is the logical relationship between the "sentence 1" and the "sentence 2"?'
_SENTIMENT = "What is the sentiment of the following paragraph?"
_TOPIC = "What is the topic of the following paragraph?"
_TRUE_FALSE = "According to the following passage, is the question true or false?"

QUESTIONS = {
    **dict.fromkeys(("mnli", "rte", "cb"), _NLI),
    **dict.fromkeys(("yelp", "amazon", "sst-2", "imdb"), _SENTIMENT),
    **dict.fromkeys(("dbpedia", "yahoo", "agnews"), _TOPIC),
    **dict.fromkeys(("boolqa", "copa"), _TRUE_FALSE),
    "qqp": 'Whether the "first sentence" and the "second sentence" have the same meaning?',
    "multirc": (
        "According to the following passage and question, is the candidate answer true or false?"
    ),
    "wic": (
        "Given a word and two sentences, whether the word is used with the same sense in both "
        "sentence?"
    ),
}
_OTHER = "What is the label of the following text?"

_OPTIONS = re.compile(r"\bOptions?:[ \t]*([^\n]+)")


def choice_prompt(task: str, labels: Sequence[str], fields: str) -> str:
    """The prompt of a classification task; ``fields`` end up between options and ``Answer:``."""
    question = QUESTIONS.get(task, _OTHER)
    options = ", ".join(labels)
    return f"{question} Choose one from the option. Option: {options}.\n{fields}\nAnswer:"


def definition_prompt(definition: str, text: str) -> str:
    """The prompt of a SuperNI task."""
    return f"[INS] {definition}\n [IN] {text}\n [OUT] "


def joined_prompt(instruction: str, text: str) -> str:
    """An Alpaca record as one string: the instruction, a newline where it has none, the input."""
    if not text:
        return instruction
    return instruction + ("" if instruction.endswith("\n") else "\n") + text


def options_in(prompt: str) -> tuple[str, ...]:
    """The answers that a prompt lists after ``Option:``; empty where it lists fewer than two."""
    found = _OPTIONS.search(prompt)
    if not found:
        return ()
    options = tuple(part.strip() for part in found[1].strip(" .\t\r").split(","))
    return options if len(options) > 1 and all(options) else ()


def shared_options(records: Iterable[Record]) -> tuple[str, ...]:
    """The options of these prompts where all list the same, else none."""
    distinct = {options_in(record["input"]) for record in records}
    return distinct.pop() if len(distinct) == 1 else ()
