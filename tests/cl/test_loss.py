"""AnswerLoss: the loss of transformers, with the head at the answer's positions only."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Gemma2Config, Gemma2ForCausalLM

from aimmerge_fast.cl.encode import AnswerLoss, Encoder
from aimmerge_fast.cl.loss import PLACES
from aimmerge_fast.cl.models import add_lora
from tests.cl.bare import bench
from tests.cl.tiny_models import (
    causal_model,
    end_adding_tokenizer,
    records,
    seq2seq_model,
    word_tokenizer,
)

ASKED = records(6)


def capped_model() -> Any:
    """Soft caps its logits, so its head is more than a linear layer."""
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=24,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        final_logit_softcapping=2.0,
        pad_token_id=0,
        initializer_range=0.3,
    )
    return Gemma2ForCausalLM(config).eval()


def gradients(model: Any) -> list[torch.Tensor]:
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    assert found
    return found


@pytest.mark.parametrize("make", [causal_model, capped_model, seq2seq_model])
def test_values_and_gradients_are_those_of_transformers(make: Any) -> None:
    seq2seq = make is seq2seq_model
    model = add_lora(make(), rank=4, dropout=0.0)
    tokenizer = end_adding_tokenizer() if seq2seq else word_tokenizer()
    batch = Encoder(tokenizer, seq2seq=seq2seq).collate(ASKED)
    loss = AnswerLoss(model, seq2seq)
    assert loss.plain_head is (make is causal_model)
    expected = model(**batch).loss
    expected.backward()
    wanted = gradients(model)
    found = loss(model, batch)
    found.backward()
    torch.testing.assert_close(found, expected)
    for mine, theirs in zip(gradients(model), wanted, strict=True):
        torch.testing.assert_close(mine, theirs)
    total, tokens = loss.total(model, batch)
    assert tokens == int((batch["labels"] != -100).sum())
    torch.testing.assert_close(total / tokens, expected)


def test_padding_and_neighbours_do_not_matter() -> None:
    model = causal_model()
    encoder, loss = Encoder(word_tokenizer(), seq2seq=False), AnswerLoss(model, False)
    with torch.no_grad():
        together, count = loss.total(model, encoder.collate(ASKED))
        alone = [loss.total(model, encoder.collate([record])) for record in ASKED]
    torch.testing.assert_close(together, torch.stack([part for part, _ in alone]).sum())
    assert count == sum(tokens for _, tokens in alone)


def test_the_head_sees_answer_positions_only() -> None:
    model = causal_model()
    loss = AnswerLoss(model, False)
    rows: list[int] = []
    model.lm_head.register_forward_hook(lambda _, given, __: rows.append(given[0].shape[0]))
    batch = Encoder(word_tokenizer(), seq2seq=False).collate(ASKED)
    loss(model, batch)
    assert rows == [int((batch["labels"] != -100).sum())]


def test_16_bit_base_trains_float32_adapters() -> None:
    model = add_lora(causal_model().to(torch.bfloat16))
    model.train()
    batch = Encoder(word_tokenizer(), seq2seq=False).collate(ASKED)
    found = AnswerLoss(model, False)(model, batch)
    found.backward()
    assert found.dtype == torch.float32
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)


def test_asking_whether_the_head_is_plain_leaves_no_trace() -> None:
    model = add_lora(causal_model())
    model.train()
    state = torch.get_rng_state()
    assert AnswerLoss(model, False).plain_head
    assert model.training
    assert torch.equal(state, torch.get_rng_state())


def test_a_batch_without_answers_is_refused() -> None:
    model = causal_model()
    batch = {"input_ids": torch.ones(1, 3).long(), "labels": torch.full((1, 3), -100)}
    with pytest.raises(ValueError, match="no answer token"):
        AnswerLoss(model, False)(model, batch)


class NoSearch(TorchDispatchMode):
    """Forbids what gives as many entries as its values say: a GPU's host waits for the number."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        searches = (torch.ops.aten.nonzero.default, torch.ops.aten.masked_select.default)
        assert func not in searches, f"{func} waits for a GPU"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("make", [causal_model, capped_model, seq2seq_model])
def test_a_located_batch_is_not_searched_again(make: Any) -> None:
    seq2seq = make is seq2seq_model
    model = make()
    tokenizer = end_adding_tokenizer() if seq2seq else word_tokenizer()
    batch = Encoder(tokenizer, seq2seq=seq2seq).collate(ASKED)
    loss = AnswerLoss(model, seq2seq)
    expected = loss(model, batch)
    located = loss.located(batch)
    assert torch.equal(loss.located(located)[PLACES], located[PLACES])
    with NoSearch():
        assert torch.equal(loss(model, located), expected)
    with pytest.raises(AssertionError, match=r"nonzero.* waits"), NoSearch():
        loss(model, batch)


def test_rehearsal_batches_are_located() -> None:
    # They are moved to the model's device before the loss sees them.
    assert PLACES in bench().trainee.collate(ASKED)
