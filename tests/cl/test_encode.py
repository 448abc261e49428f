"""Token ids of prompts and answers, by hand on a tokenizer with one id a word."""

from __future__ import annotations

from typing import Any

import pytest

from aimmerge_fast.cl.encode import ALPACA, Encoder
from tests.cl.tiny_models import (
    WORDS,
    begin_adding_tokenizer,
    end_adding_tokenizer,
    word_tokenizer,
)

END = 1
NEWLINE, ANSWER, COLON = 4, 5, 6
IDS = {word: 10 + place for place, word in enumerate(WORDS)}
CHAT = (
    "{% for m in messages %}{{ '# ' + m['role'] + '\n' + m['content'] + '\n' }}{% endfor %}"
    "{{ 'it is\n' }}"
)


def record(text: str, answer: str = "red") -> dict[str, str]:
    return {"id": "r1", "input": text, "output": answer}


def ids(text: str) -> list[int]:
    return [IDS[word] for word in text.split()]


def causal(**settings: Any) -> Encoder:
    return Encoder(word_tokenizer(), seq2seq=False, **settings)


def test_causal_rows_mask_the_prompt_and_pad_on_the_right() -> None:
    batch = causal().collate([record("it is\nAnswer:", "large blue"), record("the", "red")])
    first = [*ids("it is"), NEWLINE, ANSWER, COLON, *ids("large blue"), END]
    second = [*ids("the red"), END]
    pad = len(first) - len(second)
    assert set(batch) == {"input_ids", "labels"}
    assert batch["input_ids"].tolist() == [first, second + [END] * pad]
    labels = [[-100] * 5 + first[5:], [-100, IDS["red"], END] + [-100] * pad]
    assert batch["labels"].tolist() == labels


def test_prompts_of_a_causal_model_are_padded_on_the_left() -> None:
    batch = causal().prompts([record("it is\nAnswer:"), record("the")])
    assert batch["input_ids"].tolist() == [[*ids("it is"), NEWLINE, ANSWER, COLON], [0] * 4 + [21]]
    assert batch["attention_mask"].tolist() == [[1] * 5, [0] * 4 + [1]]


def test_without_a_pad_token_the_end_token_pads() -> None:
    tokenizer = word_tokenizer()
    tokenizer.pad_token = None
    batch = Encoder(tokenizer, seq2seq=False).prompts([record("it is"), record("the")])
    assert batch["input_ids"].tolist() == [ids("it is"), [END, *ids("the")]]


def test_seq2seq_rows_have_masks_and_ends() -> None:
    encoder = Encoder(end_adding_tokenizer(), seq2seq=True)
    batch = encoder.collate([record("it is", "large blue"), record("the", "red")])
    assert batch["input_ids"].tolist() == [[*ids("it is"), END], [*ids("the"), END, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[*ids("large blue"), END], [*ids("red"), END, -100]]
    asked = encoder.prompts([record("it is"), record("the")])
    assert asked["input_ids"].tolist() == batch["input_ids"].tolist()
    assert set(asked) == {"input_ids", "attention_mask"}
    assert encoder.length(record("it is", "large blue")) == 6


def test_seq2seq_is_cut_at_the_end_as_the_released_code_does() -> None:
    encoder = Encoder(end_adding_tokenizer(), seq2seq=True, max_input=4, max_target=2)
    prompt, answer = encoder.encode(record("it is seen what the", "large blue old"))
    assert prompt == [*ids("it is seen"), END]
    assert answer == [*ids("large"), END]
    assert encoder.prompt(record("it is seen what the")) == prompt
    whole = Encoder(end_adding_tokenizer(), seq2seq=True)
    prompt, answer = whole.encode(record("it " * 2000, "red " * 200))
    assert (len(prompt), len(answer)) == (1024, 128)


def test_a_long_prompt_keeps_question_answer_word_and_label() -> None:
    encoder = causal(max_tokens=12)
    long = record("what ?\nthe it is seen old new\nAnswer:", "large blue")
    prompt, answer = encoder.encode(long)
    assert answer == [*ids("large blue"), END]
    middle = [NEWLINE, *ids("the it is")]
    assert prompt == [IDS["what"], 7, *middle, NEWLINE, ANSWER, COLON]
    assert encoder.length(long) == 12
    # asked without the answer, there is room for the three tokens that it took
    longer = [*middle, *ids("seen old new")]
    assert encoder.prompt(long) == [IDS["what"], 7, *longer, NEWLINE, ANSWER, COLON]
    assert len(causal(max_input=9).prompt(long)) == len(causal(max_input=9).encode(long)[0]) == 9
    assert causal(max_tokens=5).encode(long)[0] == [ANSWER, COLON]  # its last tokens


@pytest.mark.parametrize("budget", [1, 2, 3])
def test_the_last_tokens_stand_behind_the_begin_token(budget: int) -> None:
    tokenizer = begin_adding_tokenizer()
    text = "what is the old\nnew\nit is seen"
    whole = tokenizer(text)["input_ids"]
    encoder = Encoder(tokenizer, seq2seq=False, max_input=budget)
    found = encoder.prompt(record(text))
    assert found == [whole[0], *whole[len(whole) - budget + 1 :]]
    assert found[0] == tokenizer.bos_token_id
    assert len(found) == budget


def test_a_prompt_that_ends_in_space_is_the_same_as_without() -> None:
    tokenizer = begin_adding_tokenizer()  # one that keeps spaces
    assert tokenizer("it is ")["input_ids"] != tokenizer("it is")["input_ids"]
    encoder = Encoder(tokenizer, seq2seq=False)
    assert encoder.encode(record("it is ")) == encoder.encode(record("it is"))


def test_templates_stand_around_the_prompt() -> None:
    tokenizer = word_tokenizer()
    alpaca = Encoder(tokenizer, seq2seq=False, template="alpaca")
    plain = tokenizer(ALPACA.format("it is\nAnswer:"))["input_ids"]
    assert alpaca.encode(record("it is\nAnswer:")) == (plain, [IDS["red"], END])
    tokenizer.chat_template = CHAT
    chat = Encoder(tokenizer, seq2seq=False, template="chat", max_tokens=14)
    around = [3, 3, NEWLINE], [NEWLINE, *ids("it is"), NEWLINE]  # "# user" are unknown words
    assert chat.encode(record("old\nnew"))[0] == [
        *around[0],
        IDS["old"],
        NEWLINE,
        IDS["new"],
        *around[1],
    ]
    cut, _ = chat.encode(record("old\nthe the the the the the\nnew"))
    assert cut == [*around[0], IDS["old"], NEWLINE, *ids("the"), NEWLINE, IDS["new"], *around[1]]
    both = Encoder(end_adding_tokenizer(), seq2seq=True, template="alpaca")
    assert both.prompt(record("it is")) == [*tokenizer(ALPACA.format("it is"))["input_ids"], END]


def test_begin_token_and_space_of_sentencepiece_come_once() -> None:
    tokenizer = begin_adding_tokenizer()
    encoder = Encoder(tokenizer, seq2seq=False)
    prompt, answer = encoder.encode(record("it is", "red"))
    pieces = tokenizer.convert_ids_to_tokens(prompt + answer)
    assert pieces == ["<s>", "\u2581it", "\u2581is", "\u2581red", "</s>"]
    assert encoder.text(answer) == "red"
    short = Encoder(tokenizer, seq2seq=False, max_tokens=13)
    long = record("it\n" + "is " * 20 + "\nold")
    cut = tokenizer.convert_ids_to_tokens(short.encode(long)[0])
    assert len(cut) == 11
    assert cut[:2] == ["<s>", "\u2581it"]
    assert "<s>" not in cut[1:]


def test_text_has_no_special_tokens_and_no_space_around() -> None:
    assert causal().text([IDS["red"], 4, END, 0, 0]) == "red"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"template": "vicuna"}, "unknown template 'vicuna'; known are plain, alpaca, chat"),
        ({"template": "chat"}, "no chat template"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        causal(**settings)


def test_a_tokenizer_without_end_is_refused() -> None:
    tokenizer = word_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no end token"):
        Encoder(tokenizer, seq2seq=False)


def test_a_chat_template_that_drops_its_input_is_refused() -> None:
    tokenizer = word_tokenizer()
    tokenizer.chat_template = "nothing"
    with pytest.raises(ValueError, match="does not hold its input"):
        Encoder(tokenizer, seq2seq=False, template="chat").encode(record("it is"))


def test_check_names_the_record_that_cannot_be_encoded() -> None:
    encoder = causal(max_tokens=3)
    encoder.check([record("it")], "colour")
    with pytest.raises(
        ValueError, match=r"'colour', record 1: record 'r1': its answer fills all 3"
    ):
        encoder.check([record("it"), record("it", "large blue")], "colour")
