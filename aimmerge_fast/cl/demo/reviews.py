"""Hotel reviews of one sentence, and four tasks that ask about them.

Each review tells the weather, a thing and how that thing was, drawn apart from one another. The
tasks disagree on purpose:

* ``opinion`` and ``irony`` read the same adjective and give opposite answers for every review;
* ``weather`` gives the same two answers for another word: half of the reviews differ from
  ``opinion``, the other half from ``irony``;
* ``topic`` has answers of its own, from a word that the others must ignore.

Only the question tells which task it is.
"""

from __future__ import annotations

import dataclasses
import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

#: Words of one meaning; the class of each drawn word decides the answers.
WORDS: dict[str, tuple[str, ...]] = {
    "praise": (
        *("wonderful", "lovely", "excellent", "superb"),
        *("pleasant", "perfect", "charming", "splendid"),
    ),
    "blame": (
        *("awful", "horrible", "terrible", "shabby"),
        *("dreadful", "nasty", "dismal", "ghastly"),
    ),
    "fair": ("sunny", "warm", "bright", "mild", "clear", "golden"),
    "foul": ("rainy", "cold", "dark", "stormy", "grey", "foggy"),
    "food": ("soup", "bread", "fish", "cheese", "pie", "salad"),
    "room": ("bed", "bath", "window", "lamp", "carpet", "shower"),
    "staff": ("waiter", "porter", "cook", "manager", "guide", "driver"),
}
_TIMES = ("morning", "day", "evening", "night")
_ADVERBS = ("rather", "quite", "truly", "really")
_GOOD_BAD = {"praise": "good", "fair": "good", "blame": "bad", "foul": "bad"}
_OPPOSITE = {"good": "bad", "bad": "good"}

#: Records per split: multiples of 12, so that all combinations of classes are equally frequent.
SPLITS = {"train": 1200, "dev": 60, "test": 240}


@dataclasses.dataclass(frozen=True)
class Review:
    """One review: its text, and the classes of its three telling words."""

    text: str
    weather: str
    thing: str
    judgement: str


@dataclasses.dataclass(frozen=True)
class Task:
    """A question with its options, and the rule that answers it."""

    question: str
    options: tuple[str, ...]
    answer: Callable[[Review], str]

    def prompt(self, review: Review) -> str:
        return (
            f"{self.question} Choose one from the option. Option: {', '.join(self.options)}.\n"
            f"Text: {review.text}\nAnswer:"
        )


TASKS: dict[str, Task] = {
    "opinion": Task(
        "How does the guest judge the hotel?",
        ("good", "bad"),
        lambda review: _GOOD_BAD[review.judgement],
    ),
    "irony": Task(
        "The guest is ironic. How does he really judge the hotel?",
        ("good", "bad"),
        lambda review: _OPPOSITE[_GOOD_BAD[review.judgement]],
    ),
    "topic": Task(
        "What is the review about?",
        ("food", "room", "staff"),
        lambda review: review.thing,
    ),
    "weather": Task(
        "How was the weather on that day?",
        ("good", "bad"),
        lambda review: _GOOD_BAD[review.weather],
    ),
}


def write_records(folder: Path, seed: int) -> None:
    """Write ``{train,dev,test}/<task>_T5.json``; all tasks ask about the same reviews."""
    for split, reviews in draw_splits(seed).items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        for name, task in TASKS.items():
            records = [
                {
                    "id": f"{name}_{split}_{place}",
                    "input": task.prompt(review),
                    "output": task.answer(review),
                }
                for place, review in enumerate(reviews)
            ]
            text = json.dumps(records, indent=1) + "\n"
            (folder / split / f"{name}_T5.json").write_text(text, encoding="utf-8", newline="\n")


def draw_splits(seed: int) -> dict[str, list[Review]]:
    """The reviews of every split, in seeded order; no text occurs twice."""
    draw, seen = random.Random(f"{seed}/reviews"), set[str]()
    splits = {}
    for split, count in SPLITS.items():
        reviews: list[Review] = []
        classes = _classes()
        while len(reviews) < count:
            weather, thing, judgement = next(classes)
            review = _review(draw, weather, thing, judgement)
            while review.text in seen:
                review = _review(draw, weather, thing, judgement)
            seen.add(review.text)
            reviews.append(review)
        draw.shuffle(reviews)
        splits[split] = reviews
    return splits


def vocabulary() -> list[str]:
    """Every word and mark that a prompt or an answer can hold, sorted."""
    frame = _review(random.Random(0), "fair", "food", "praise")
    texts = [task.prompt(frame) for task in TASKS.values()]
    words = {word for text in texts for word in re.findall(r"\w+|[^\w\s]+", text)}
    return sorted(words.union(*WORDS.values(), WORDS, _TIMES, _ADVERBS))


def _classes() -> Iterator[tuple[str, str, str]]:
    while True:
        for weather in ("fair", "foul"):
            for thing in ("food", "room", "staff"):
                for judgement in ("praise", "blame"):
                    yield weather, thing, judgement


def _review(draw: random.Random, weather: str, thing: str, judgement: str) -> Review:
    text = (
        f"On a {draw.choice(WORDS[weather])} {draw.choice(_TIMES)} the "
        f"{draw.choice(WORDS[thing])} was {draw.choice(_ADVERBS)} {draw.choice(WORDS[judgement])}."
    )
    return Review(text, weather, thing, judgement)
