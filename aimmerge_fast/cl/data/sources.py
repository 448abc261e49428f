"""The primary public datasets of the 15 classification tasks: hub names, columns, labels, prompts.

Columns and class numbers are those of the hub repositories' cards; nothing here has been run
against the hub. Answers and the order of the options are those of the AimMerging and O-LoRA
records. Three things differ from those records and cannot be had from these sources: ``ag_news``
has title and text in one column; ``google/boolq`` passages do not start with their page's title;
and which 1,000 records were drawn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

Row = Mapping[str, Any]
Fields = Callable[[Row], str]

_STARS = ("very negative", "negative", "neutral", "positive", "very positive")
_DBPEDIA = (
    *("Company", "Educational Institution", "Artist", "Athlete", "Office Holder"),
    *("Mean of Transportation", "Building", "Natural Place", "Village", "Animal", "Plant"),
    *("Album", "Film", "Written Work"),
)
_YAHOO = (
    *("Society & Culture", "Science & Mathematics", "Health", "Education & Reference"),
    *("Computers & Internet", "Sports", "Business & Finance", "Entertainment & Music"),
    *("Family & Relationships", "Politics & Government"),
)
_NO_YES = ("False", "True")
_NLI = ("entailment", "neutral", "contradiction")
_PARQUET = "refs/convert/parquet"  # the repository is a script, which `datasets` 5 does not run


@dataclasses.dataclass(frozen=True)
class Source:
    """A hub dataset as a task: ``classes`` are the answers by class number, ``options`` by prompt.

    ``columns`` are the columns read, ``label`` the one with the class number (or bool), ``names``
    the columns of a file without a header, ``test`` the split that tests.
    """

    path: str
    classes: tuple[str, ...]
    columns: tuple[str, ...]
    fields: Fields
    config: str | None = None
    options: tuple[str, ...] = ()
    label: str = "label"
    test: str = "test"
    revision: str | None = None
    names: tuple[str, ...] | None = None

    @property
    def prompted(self) -> tuple[str, ...]:
        return self.options or self.classes


def _template(text: str) -> Fields:
    return lambda row: text.format_map(row)


def _yahoo(row: Row) -> str:
    answer = f"Answer: {row['best_answer']}\n"
    if not row["question_content"]:
        return f"Question: {row['question_title']}\n{answer}"
    return f"Title: {row['question_title']}\nQuestion: {row['question_content']}\n{answer}"


def _copa(row: Row) -> str:
    question = f'Which sentence is the {row["question"]} of "{row["premise"]}"?'
    return f"{question} Choose one between A and B.\nA: {row['choice1']}\nB: {row['choice2']}"


def _glue(config: str, classes: tuple[str, ...], text: str, **more: Any) -> Source:
    columns = tuple(part.split("}")[0] for part in text.split("{")[1:])
    settings = {"test": "validation", **more}
    return Source("nyu-mll/glue", classes, columns, _template(text), config, **settings)


def _superglue(
    config: str, classes: tuple[str, ...], columns: str, fields: Fields, options: tuple[str, ...]
) -> Source:
    return Source(
        "aps/super_glue",
        classes,
        tuple(columns.split()),
        fields,
        config,
        options,
        test="validation",
        revision=_PARQUET,
    )


_PAIR = "sentence 1: {premise}\nsentence 2: {hypothesis}"
_TITLED = "Title: {title}\nText: {content}\n"

SOURCES: dict[str, Source] = {
    "dbpedia": Source("fancyzhx/dbpedia_14", _DBPEDIA, ("title", "content"), _template(_TITLED)),
    "yahoo": Source(
        "community-datasets/yahoo_answers_topics",
        _YAHOO,
        ("question_title", "question_content", "best_answer"),
        _yahoo,
        label="topic",
    ),
    "agnews": Source(
        "fancyzhx/ag_news",
        ("World", "Sports", "Business", "Science or Technology"),
        ("text",),
        _template("Text: {text}\n"),
    ),
    "amazon": Source(
        "vgaraujov/amazon_review_full",
        _STARS,
        ("title", "content"),
        _template(_TITLED),
        names=("label", "title", "content"),
    ),
    "yelp": Source("Yelp/yelp_review_full", _STARS, ("text",), _template("Text: {text}\n")),
    "imdb": Source(
        "stanfordnlp/imdb",
        ("Bad", "Good"),
        ("text",),
        _template("{text}"),
        options=("Good", "Bad"),
    ),
    "mnli": _glue(
        "mnli",
        _NLI,
        _PAIR,
        options=("neutral", "entailment", "contradiction"),
        test="validation_matched",
    ),
    "rte": _glue(
        "rte",
        ("entailment", "contradiction"),
        "sentence 1: {sentence1}\nsentence 2: {sentence2}",
        options=("contradiction", "entailment"),
    ),
    "qqp": _glue("qqp", _NO_YES, "first sentence: {question1}\nsecond sentence: {question2}"),
    "sst-2": _glue("sst2", ("Bad", "Good"), "Text: {sentence}"),
    "cb": _superglue(
        "cb",
        ("entailment", "contradiction", "neutral"),
        "premise hypothesis",
        _template(_PAIR),
        ("entailment", "contradiction", "neutral"),
    ),
    "copa": _superglue("copa", ("A", "B"), "premise question choice1 choice2", _copa, ("A", "B")),
    "wic": _superglue(
        "wic",
        _NO_YES,
        "word sentence1 sentence2",
        _template("word: {word}\n{sentence1}\n{sentence2}"),
        ("True", "False"),
    ),
    "multirc": _superglue(
        "multirc",
        _NO_YES,
        "paragraph question answer",
        _template("paragraph: {paragraph}\nquestion: {question}\ncandidate answer: {answer}"),
        _NO_YES,
    ),
    "boolqa": Source(
        "google/boolq",
        _NO_YES,
        ("question", "passage"),
        _template("question: {question}\npassage: {passage}"),
        options=("True", "False"),
        label="answer",
        test="validation",
    ),
}
