"""Batched greedy generation: equal texts to decoding by the definition, whatever the settings."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import GenerationConfig

from aimmerge_fast.cl.encode import Encoder
from aimmerge_fast.cl.generate import generate
from aimmerge_fast.cl.models import add_lora
from tests.cl.tiny_models import (
    causal_model,
    end_adding_tokenizer,
    naive_texts,
    records,
    seq2seq_model,
    word_tokenizer,
)

NEW = 6
Made = tuple[Any, Encoder]


def causal() -> Made:
    return causal_model(), Encoder(word_tokenizer(), seq2seq=False)


def seq2seq() -> Made:
    return seq2seq_model(), Encoder(end_adding_tokenizer(), seq2seq=True)


KINDS = pytest.mark.parametrize("make", [causal, seq2seq])


@KINDS
def test_200_records_give_the_texts_of_one_by_one(make: Callable[[], Made]) -> None:
    model, encoder = make()
    asked = records(200)
    texts = generate(model, encoder, asked, batch=25, max_new_tokens=NEW)
    assert texts == generate(model, encoder, asked, batch=1, max_new_tokens=NEW)
    assert texts[::10] == naive_texts(model, encoder, asked[::10], NEW)
    lengths = {len(text.split()) for text in texts}
    assert NEW in lengths  # some never end
    assert min(lengths) <= NEW // 2  # some end early
    assert len(set(texts)) > 20  # the model listens to its prompt


@KINDS
def test_the_models_own_settings_and_state_do_not_matter(
    make: Callable[[], Made], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, encoder = make()
    asked = records(12)
    expected = generate(model, encoder, asked, max_new_tokens=NEW)
    start = model.generation_config.decoder_start_token_id
    settings: Any = GenerationConfig
    own = settings(
        do_sample=True,
        temperature=5.0,
        top_k=3,
        top_p=0.2,
        repetition_penalty=9.0,
        no_repeat_ngram_size=1,
        num_beams=3,
        num_return_sequences=2,
        max_length=4,
        decoder_start_token_id=start,
    )
    model.generation_config = own
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    model.train()
    frozen = next(m for m in model.modules() if isinstance(m, torch.nn.Linear))
    frozen.training = False
    before = torch.get_rng_state()
    with caplog.at_level(logging.INFO):
        assert generate(model, encoder, asked, batch=5, max_new_tokens=NEW) == expected
    assert not caplog.records
    assert torch.equal(before, torch.get_rng_state())
    assert model.generation_config is own
    assert model.training
    assert not frozen.training


def test_modes_are_restored_after_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    model, encoder = causal()
    model.train()

    def fail(**_: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model, "generate", fail)
    own = model.generation_config
    with pytest.raises(RuntimeError, match="out of memory"):
        generate(model, encoder, records(2))
    assert model.training
    assert model.generation_config is own
    assert torch.is_grad_enabled()


def test_a_batch_ends_when_all_rows_have() -> None:
    model, encoder = causal()
    with torch.no_grad():
        model.lm_head.weight.zero_()  # all words alike: the first, id 0
    seen: list[int] = []
    model.lm_head.register_forward_hook(lambda *_: seen.append(1))
    generate(model, encoder, records(3), max_new_tokens=NEW)
    assert len(seen) == NEW
    encoder.end = 0
    seen.clear()
    generate(model, encoder, records(3), max_new_tokens=NEW)
    assert len(seen) == 1


@KINDS
def test_several_active_adapters_all_act(make: Callable[[], Made]) -> None:
    base, encoder = make()
    asked = records(10)
    model = add_lora(base, targets=None, seed=1)
    targets = model.peft_config["default"].target_modules
    model.add_adapter("other", LoraConfig(r=4, lora_alpha=32, target_modules=targets))
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.2)
    one = generate(model, encoder, asked, batch=4, max_new_tokens=NEW)
    model.base_model.set_adapter(["default", "other"])
    both = generate(model, encoder, asked, batch=4, max_new_tokens=NEW)
    assert both == naive_texts(model, encoder, asked, NEW)
    assert both != one


def test_order_is_kept_and_the_longest_come_first() -> None:
    model, encoder = causal()
    asked = records(9, longest=40)
    seen: list[int] = []
    original = model.generate

    def watched(**inputs: Any) -> Any:
        seen.append(inputs["input_ids"].shape[1])
        return original(**inputs)

    model.generate = watched
    texts = generate(model, encoder, asked, batch=2, max_new_tokens=3)
    assert seen == sorted(seen, reverse=True)
    assert len(seen) == 5
    assert generate(model, encoder, asked[::-1], batch=4, max_new_tokens=3) == texts[::-1]
    assert generate(model, encoder, [], batch=4) == []


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"max_new_tokens": 0}])
def test_sizes_below_one_are_refused(wrong: dict[str, int]) -> None:
    model, encoder = causal()
    with pytest.raises(ValueError, match="at least 1"):
        generate(model, encoder, records(1), **wrong)
