"""Exact-match accuracy of greedy generation, at nearly the price of one forward per record."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from stream.data import IGNORED, Encoder, Record
from stream.model import AnswerLoss, next_labels


def accuracy(
    model: Any,
    loss: AnswerLoss,
    encoder: Encoder,
    records: Sequence[Record],
    batch: int = 25,
    new_tokens: int = 8,
) -> float:
    """Share of records whose greedy generation equals the answer (stripped, lower-cased).

    One forward over prompt and answer replaces nearly all generation: greedy decoding repeats the
    answer exactly if the most likely token is the answer's at each place, and is wrong for good at
    the first token whose text leaves the answer's. Only the rest (the same text spelled in other
    tokens, or another case) are generated on, token by token. Draws no random numbers.
    """
    ordered = sorted(records, key=lambda record: -len(record["input"]))
    was_training = model.training
    model.eval()
    correct = 0
    with torch.inference_mode():
        for start in range(0, len(ordered), batch):
            part = ordered[start : start + batch]
            right, undecided = _judge(model, loss, encoder, part)
            correct += right + _generate(model, loss, encoder, undecided, new_tokens)
    model.train(was_training)
    return correct / len(ordered)


@dataclasses.dataclass
class _Generation:
    """A greedy generation so far: token ids of the prompt, of the output, and the wanted text."""

    prompt: list[int]
    output: list[int]
    wanted: str

    def ended(self, encoder: Encoder) -> bool:
        return self.output[-1] == encoder.end

    def right(self, encoder: Encoder) -> bool:
        return encoder.text(self.output) == self.wanted

    def possible(self, encoder: Encoder) -> bool:
        """Whether what is there can be the beginning of a right output, or be one."""
        text = encoder.text(self.output).rstrip("\ufffd")  # half of a multi-byte letter
        return self.right(encoder) if self.ended(encoder) else self.wanted.startswith(text)


def _judge(
    model: Any, loss: AnswerLoss, encoder: Encoder, records: Sequence[Record]
) -> tuple[int, list[_Generation]]:
    """How many records are right for sure, and those that one forward cannot decide."""
    batch = encoder.collate(records)
    labels = next_labels(batch["labels"])
    where = labels != IGNORED
    best = torch.full_like(labels, IGNORED)
    best[where] = loss.logits(model, batch["input_ids"], where).argmax(-1)
    right, undecided = 0, []
    for row, record in enumerate(records):
        prompt, answer = encoder.encode(record)
        greedy = best[row][where[row]].tolist()
        if greedy == answer:
            right += 1
            continue
        same = next(i for i, (a, g) in enumerate(zip(answer, greedy, strict=True)) if a != g)
        started = _Generation(prompt, greedy[: same + 1], record["output"].strip().lower())
        if started.possible(encoder):
            undecided.append(started)
    return right, undecided


def _generate(
    model: Any, loss: AnswerLoss, encoder: Encoder, rows: list[_Generation], new_tokens: int
) -> int:
    """Plain greedy generation of the undecided, as long as they can be right; returns how many are.

    An output is at most ``new_tokens`` long, or twice the wanted text's tokens if that is more.
    """
    right = 0
    while rows:
        limits = [
            max(new_tokens, 2 * len(encoder.tokenizer(row.wanted)["input_ids"])) for row in rows
        ]
        done = [
            row.ended(encoder) or len(row.output) >= limit
            for row, limit in zip(rows, limits, strict=True)
        ]
        right += sum(row.right(encoder) for row, is_done in zip(rows, done, strict=True) if is_done)
        rows = [row for row, is_done in zip(rows, done, strict=True) if not is_done]
        if not rows:
            break
        texts = [row.prompt + row.output for row in rows]
        ids = torch.full((len(rows), max(map(len, texts))), encoder.end)
        where = torch.zeros_like(ids, dtype=torch.bool)
        for place, text in enumerate(texts):
            ids[place, : len(text)] = torch.tensor(text)
            where[place, len(text) - 1] = True
        best = loss.logits(model, ids, where).argmax(-1).tolist()
        for row, token in zip(rows, best, strict=True):
            row.output.append(token)
        rows = [row for row in rows if row.possible(encoder)]
    return right
