"""The loss on answers, with the language-model head at the answer's positions only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aimmerge_fast.cl.models import core_of
from aimmerge_fast.passes import to_device

IGNORED = -100  # label of a position that is not part of the answer
PLACES = "answer_places"  # what ``AnswerLoss.located`` adds to a batch


class AnswerLoss:
    """Mean cross-entropy (nats) of the answer tokens: ``AnswerLoss(model, False)(model, batch)``.

    Causal models: the head is applied to the answer's positions only; with 8 x 96 tokens and
    49,152 words the logits of all positions would take longer than the backbone. A model whose
    head is not one plain linear layer (soft-capped or scaled logits) is found out by comparing
    once, and then pays for all logits. Encoder-decoders: equal to the ``.loss`` of transformers.

    A batch may stay on the CPU: it is moved to the model's device here. Finding the answers in one
    that is on a GPU waits for it, unless ``located`` has found them before. The model inside a PEFT
    wrapper is called directly, so gradients are not averaged across processes by this; the caller
    does it.
    """

    def __init__(self, model: Any, seq2seq: bool) -> None:
        self.seq2seq = seq2seq
        self.plain_head = not seq2seq and _has_plain_head(model)

    def __call__(self, model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        logits, wanted = self.answers(model, batch)
        return F.cross_entropy(logits, wanted)

    def total(self, model: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, int]:
        """(sum of the cross-entropies, number of answer tokens), to average over batches."""
        logits, wanted = self.answers(model, batch)
        return F.cross_entropy(logits, wanted, reduction="sum"), wanted.numel()

    def located(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The batch with its answer positions, int64 [n], in the logits flattened to [B * T, V].

        Raises: ValueError when there is none.
        """
        if PLACES in batch:
            return dict(batch)
        labels = batch["labels"] if self.seq2seq else next_labels(batch["labels"])
        places = (labels.flatten() != IGNORED).nonzero().squeeze(1)
        if places.numel() == 0:
            raise ValueError("the batch has no answer token; every label is masked")
        return {**batch, PLACES: places}

    def answers(self, model: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits fp32 [n, V] and int64 [n] wanted tokens, at the n answer positions row by row."""
        core = core_of(model)
        inputs = to_device(self.located(batch), core.device)
        places = inputs.pop(PLACES)
        labels = inputs["labels"] if self.seq2seq else next_labels(inputs["labels"])
        wanted = labels.flatten().index_select(0, places)
        if self.seq2seq:
            logits = core(**inputs).logits.flatten(0, 1)
        elif self.plain_head:
            hidden = core.base_model(input_ids=inputs["input_ids"], use_cache=False)
            picked = hidden.last_hidden_state.flatten(0, 1).index_select(0, places)
            return core.get_output_embeddings()(picked).float(), wanted
        else:
            logits = core(input_ids=inputs["input_ids"], use_cache=False).logits.flatten(0, 1)
        return logits.index_select(0, places).float(), wanted


def next_labels(labels: Tensor) -> Tensor:
    """Labels moved to the position that predicts them; the last position predicts nothing."""
    return F.pad(labels[:, 1:], (0, 1), value=IGNORED)


def _has_plain_head(model: Any) -> bool:
    core = core_of(model)
    head = core.get_output_embeddings()
    if head is None:
        return False
    ids = torch.arange(1, 9, device=core.device).unsqueeze(0) % core.config.vocab_size
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            expected = core(input_ids=ids, use_cache=False).logits.float()
            hidden = core.base_model(input_ids=ids, use_cache=False).last_hidden_state
            found = head(hidden).float()
    finally:
        for module, training in modes:
            module.training = training
    return expected.shape == found.shape and torch.allclose(expected, found, rtol=1e-2, atol=1e-2)
