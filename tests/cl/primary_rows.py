"""A row in the columns of each primary dataset, and the prompt and answer that it must become."""

from __future__ import annotations

from typing import Any

SENTIMENT = "What is the sentiment of the following paragraph? Choose one from the option. Option: "
TOPIC = "What is the topic of the following paragraph? Choose one from the option. Option: "
RELATION = (
    'What is the logical relationship between the "sentence 1" and the "sentence 2"? Choose one '
    "from the option. Option: "
)
TRUE_FALSE = (
    "According to the following passage, is the question true or false? Choose one from the "
    "option. Option: "
)
STARS = "very negative, negative, neutral, positive, very positive.\n"
CLASSES = (
    "Company, Educational Institution, Artist, Athlete, Office Holder, Mean of Transportation, "
    "Building, Natural Place, Village, Animal, Plant, Album, Film, Written Work.\n"
)
TOPICS = (
    "Society & Culture, Science & Mathematics, Health, Education & Reference, Computers & Internet"
    ", Sports, Business & Finance, Entertainment & Music, Family & Relationships, Politics & "
    "Government.\n"
)

# A row in the columns of each hub dataset; the prompt and the answer that it must become.
ROWS: dict[str, tuple[dict[str, Any], str, str]] = {
    "dbpedia": (
        {"label": 5, "title": "Ship", "content": " A ship."},
        f"{TOPIC}{CLASSES}Title: Ship\nText:  A ship.\n\nAnswer:",
        "Mean of Transportation",
    ),
    "yahoo": (
        {
            "id": 7,
            "topic": 4,
            "question_title": "T?",
            "question_content": "More",
            "best_answer": "B",
        },
        f"{TOPIC}{TOPICS}Title: T?\nQuestion: More\nAnswer: B\n\nAnswer:",
        "Computers & Internet",
    ),
    "agnews": (
        {"text": "Headline (AP) AP - Story.", "label": 3},
        f"{TOPIC}World, Sports, Business, Science or Technology.\n"
        "Text: Headline (AP) AP - Story.\n\nAnswer:",
        "Science or Technology",
    ),
    "amazon": (
        {"label": 1, "title": "Bad", "content": "It broke."},
        f"{SENTIMENT}{STARS}Title: Bad\nText: It broke.\n\nAnswer:",
        "negative",
    ),
    "yelp": (
        {"label": 4, "text": "Lovely."},
        f"{SENTIMENT}{STARS}Text: Lovely.\n\nAnswer:",
        "very positive",
    ),
    "imdb": (
        {"text": "A film.", "label": 0},
        f"{SENTIMENT}Good, Bad.\nA film.\nAnswer:",
        "Bad",
    ),
    "mnli": (
        {"premise": "P", "hypothesis": "H", "label": 1, "idx": 0},
        f"{RELATION}neutral, entailment, contradiction.\nsentence 1: P\nsentence 2: H\nAnswer:",
        "neutral",
    ),
    "rte": (
        {"sentence1": "P", "sentence2": "H", "label": 1, "idx": 0},
        f"{RELATION}contradiction, entailment.\nsentence 1: P\nsentence 2: H\nAnswer:",
        "contradiction",
    ),
    "cb": (
        {"premise": "P", "hypothesis": "H", "idx": 0, "label": 1},
        f"{RELATION}entailment, contradiction, neutral.\nsentence 1: P\nsentence 2: H\nAnswer:",
        "contradiction",
    ),
    "qqp": (
        {"question1": "A?", "question2": "B?", "label": 1, "idx": 0},
        'Whether the "first sentence" and the "second sentence" have the same meaning? Choose one '
        "from the option. Option: False, True.\nfirst sentence: A?\nsecond sentence: B?\nAnswer:",
        "True",
    ),
    "sst-2": (
        {"sentence": "a fine film ", "label": 1, "idx": 0},
        f"{SENTIMENT}Bad, Good.\nText: a fine film \nAnswer:",
        "Good",
    ),
    "copa": (
        {
            "premise": "P.",
            "choice1": "X.",
            "choice2": "Y.",
            "question": "cause",
            "idx": 0,
            "label": 1,
        },
        f'{TRUE_FALSE}A, B.\nWhich sentence is the cause of "P."? Choose one between A and B.\n'
        "A: X.\nB: Y.\nAnswer:",
        "B",
    ),
    "wic": (
        {"word": "hang", "sentence1": "S1.", "sentence2": "S2.", "start1": 0, "label": 0, "idx": 0},
        "Given a word and two sentences, whether the word is used with the same sense in both "
        "sentence? Choose one from the option. Option: True, False.\nword: hang\nS1.\nS2.\nAnswer:",
        "False",
    ),
    "multirc": (
        {"paragraph": "P.", "question": "Q?", "answer": "A", "idx": {"paragraph": 0}, "label": 1},
        "According to the following passage and question, is the candidate answer true or false? "
        "Choose one from the option. Option: False, True.\n"
        "paragraph: P.\nquestion: Q?\ncandidate answer: A\nAnswer:",
        "True",
    ),
    "boolqa": (
        {"question": "is it", "answer": True, "passage": "It -- it is."},
        f"{TRUE_FALSE}True, False.\nquestion: is it\npassage: It -- it is.\nAnswer:",
        "True",
    ),
}
