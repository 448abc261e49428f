"""``AIMMergeCallback`` in a Seq2SeqTrainer: a tiny T5, all of its parameters trained."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments

from tests.cl.tiny_models import seq2seq_model, word_tokenizer
from tests.integrations import trainers
from tests.integrations.trainers import Plain, again, callback, causal_loss, merges

pytestmark = [pytest.mark.filterwarnings(noise) for noise in trainers.NOISE]


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_bits_of_a_plain_loop(
    tmp_path: Path, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    pad = DataCollatorForSeq2Seq(word_tokenizer())
    monkeypatch.setattr(trainers, "collate", lambda rows: dict(pad(rows)))
    aim = callback()
    trainer = trainers.recording(Seq2SeqTrainer)(
        model=seq2seq_model(dropout_rate=dropout),
        args=trainers.arguments(
            tmp_path, Seq2SeqTrainingArguments, gradient_accumulation_steps=2, max_grad_norm=0.5
        ),
        train_dataset=trainers.tokenised(),
        data_collator=pad,
        callbacks=[aim],
    )
    aim.attach(trainer, task="now")
    trainer.train()
    model = seq2seq_model(dropout_rate=dropout)
    before = trainers.weights(model)
    merger = again(trainer, model, aim.config, trainers.remembered(), Plain(causal_loss))
    assert merges(aim.events) >= 2
    assert aim.events == merger.events
    assert trainers.weights(trainer.model) == trainers.weights(model) != before
    sizes = len(merger.binding.parameters.names), sum(1 for _ in model.parameters())
    assert sizes[0] == sizes[1]
