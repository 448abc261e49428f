"""A tiny model folder, tiny tasks and the settings of a run on them, for tests of the harness."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from aimmerge_fast.cl.config import RunConfig, build
from tests.cl.tiny_models import WORDS, causal_model, word_tokenizer

ANSWERS = ("red", "green", "blue", "red green")  # of one token and of two
ASKED = tuple(word for word in WORDS if word not in ("red", "green", "blue", "old"))


def make_model(folder: Path, **settings: Any) -> Path:
    """A causal model of 2 layers with its word tokenizer, as an HF folder; returns ``folder``."""
    causal_model(**settings).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def make_data(
    folder: Path, tasks: Sequence[str] = ("first", "second"), n: int = 40, dev: int = 8
) -> Path:
    """Tasks of ``n`` train, ``dev`` dev and 6 test records in one of 4 classes.

    The class of a record is that of the first word of its text; every task sorts the words
    differently, so tasks conflict. Returns ``folder``.
    """
    for number, task in enumerate(tasks):
        draw = random.Random(f"{task}/{number}")
        for split, count in (("train", n), ("dev", dev), ("test", 6)):
            records = [_record(draw, number, f"{task}-{split}-{i}") for i in range(count)]
            path = folder / split / f"{task}_T5.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(records), encoding="utf-8")
    return folder


def make_config(folder: Path, arms: Any = "seqlora", **fields: Any) -> RunConfig:
    """Settings of a run on ``folder``/model and ``folder``/data: 6 updates a task, rank 2."""
    settings = {
        "stream": ["first", "second"],
        "data": folder / "data",
        "model": folder / "model",
        "out": folder / "out",
        "arms": arms,
        "steps": 6,
        "batch": 4,
        "rank": 2,
        "warmup": 1,
        "lr": 0.01,
        "memory_ratio": 0.2,
        "max_new_tokens": 4,
        "save_every": 2,
        "log_every": 2,
    }
    return build({**settings, **fields})


def _record(draw: random.Random, number: int, name: str) -> dict[str, str]:
    words = draw.choices(ASKED, k=draw.randint(2, 5))
    place = (ASKED.index(words[0]) * (number + 1) + number) % len(ANSWERS)
    return {"id": name, "input": f"{' '.join(words)}\nAnswer:", "output": ANSWERS[place]}


def poisoned(original: Any, name: str, step: int) -> Any:
    """``updates``, whose loss in one update of one stage is nan."""

    def made(method: Any, records: Any, stage: str, *rest: Any) -> Iterator[Any]:
        for update in original(method, records, stage, *rest):
            factor = float("nan") if (stage, update.step) == (name, step) else 1.0
            yield type(update)(update.step, update.loss * factor, update.learning_rate)

    return made


ARMS = ("seqlora", "replay", "aim:s_init=2")
_MADE: dict[str, Path] = {}


def finished_run(factory: Any) -> Path:
    """A folder with model, data and the finished run of ``ARMS`` in ``out``; made once a session.

    ``factory``: pytest's ``tmp_path_factory``. Its files are not to be changed.
    """
    from aimmerge_fast.cl.runner import run

    if "run" not in _MADE:
        folder = factory.mktemp("tiny")
        make_model(folder / "model")
        make_data(folder / "data")
        run(make_config(folder, ARMS))
        _MADE["run"] = folder
    return _MADE["run"]
