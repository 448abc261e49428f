"""Scores of a task from its predictions."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from aimmerge_fast.cl import evaluate as module
from aimmerge_fast.cl import metrics
from aimmerge_fast.cl.data import TaskData
from aimmerge_fast.cl.encode import Encoder
from aimmerge_fast.cl.evaluate import TaskScore, evaluate
from tests.cl.tiny_models import causal_model, naive_texts, records, word_tokenizer


def task(metric: str = "accuracy") -> TaskData:
    return TaskData("colour", [], [], [], metric, None, (), "")


def encoder() -> Encoder:
    return Encoder(word_tokenizer(), seq2seq=False)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stands for generation: what it answers, and what it was asked."""
    given: dict[str, Any] = {}

    def generate(model: Any, encoder: Any, asked: Any, **settings: Any) -> list[str]:
        given.update(settings)
        return list(given["texts"])

    monkeypatch.setattr(module, "generate", generate)
    return given


ASKED = [
    {"id": "a", "input": "it", "output": "Red"},
    {"id": "b", "input": "is", "output": "the blue"},
    {"input": "is", "output": "old"},
]


def test_accuracy_is_the_share_of_exact_matches(answers: dict[str, Any]) -> None:
    answers["texts"] = ["red", "the blue one", "old"]
    found = evaluate(None, encoder(), task(), ASKED)
    assert found.score == pytest.approx(200 / 3)
    assert found.items == 3
    assert found.predictions == [
        {"id": "a", "prediction": "red", "reference": "Red", "correct": True},
        {"id": "b", "prediction": "the blue one", "reference": "the blue", "correct": False},
        {"id": 2, "prediction": "old", "reference": "old", "correct": True},
    ]
    assert TaskScore.of(found.predictions, "accuracy") == found


def test_rouge_is_the_mean_f_measure(answers: dict[str, Any]) -> None:
    answers["texts"] = ["red", "blue", "nothing"]
    found = evaluate(None, encoder(), task("rougeL"), ASKED)
    assert [p["rougeL"] for p in found.predictions] == pytest.approx([1, 2 / 3, 0])
    assert found.score == pytest.approx(500 / 9)
    assert answers["max_new_tokens"] == 128


def test_accuracy_stops_what_is_twice_too_long_to_be_right(answers: dict[str, Any]) -> None:
    answers["texts"] = ["x"]
    for words, asked, expected in [(1, 128, 8), (9, 128, 20), (9, 12, 12)]:
        record = {"id": "a", "input": "it", "output": "red " * words}
        evaluate(None, encoder(), task(), [record], max_new_tokens=asked)
        assert answers["max_new_tokens"] == expected


def test_a_real_model_is_scored_on_what_it_writes() -> None:
    model, asked = causal_model(), records(8)
    texts = naive_texts(model, encoder(), asked, 8)
    for record, text in zip(asked[:3], texts, strict=False):
        record["output"] = text.upper()
    found = evaluate(model, encoder(), task(), asked, batch=3, max_new_tokens=8)
    assert [p["prediction"] for p in found.predictions] == texts
    assert [p["correct"] for p in found.predictions] == [True] * 3 + [False] * 5
    assert found.score == pytest.approx(37.5)


def test_bad_input_is_refused_before_generating(
    answers: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="'colour': unknown metric 'f1'; known are accuracy"):
        evaluate(None, encoder(), task("f1"), ASKED)
    with pytest.raises(ValueError, match="'colour' has no records"):
        evaluate(None, encoder(), task(), [])
    with pytest.raises(ValueError, match="no predictions"):
        TaskScore.of([], "accuracy")
    metrics._rouge.cache_clear()
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(RuntimeError, match="rouge-score"):
        evaluate(None, encoder(), task("rougeL"), ASKED)
    assert not answers
