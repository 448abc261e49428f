"""Token ids of records: prompts, answers, labels, and batches."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from aimmerge_fast.cl.batches import batch_at
from aimmerge_fast.cl.loss import IGNORED, AnswerLoss

__all__ = ["IGNORED", "TEMPLATES", "AnswerLoss", "Encoder", "batch_at"]

ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\n{}"
    "\n\n### Response:\n"
)
TEMPLATES = ("plain", "alpaca", "chat")


class Encoder:
    """Turns records (``input``: the whole prompt, ``output``: the answer) into token ids.

    Causal models read prompt, answer and end token in one row; only the answer and the end token
    are scored. The prompt has at most ``max_input`` tokens, all together at most ``max_tokens``
    (default ``max_input + max_target``); the answer is never cut. A prompt that is too long keeps
    its first line (question and options), its last line (``Answer:``) and as much of the text
    between them as fits, from its start; if those two alone are too long, its last tokens
    (behind the begin token, where there is one).
    Encoder-decoders read ``input`` as it is, cut after ``max_input`` tokens, and learn to write at
    most ``max_target`` (the released code's rule; it does not cut what it generates from, here
    both are the same).

    Args:
        template: what stands around ``input``: ``plain`` nothing, ``alpaca`` the template of
            that name, ``chat`` the tokenizer's own chat template.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        seq2seq: bool,
        max_input: int = 1024,
        max_target: int = 128,
        max_tokens: int | None = None,
        template: str = "plain",
    ) -> None:
        if template not in TEMPLATES:
            raise ValueError(f"unknown template {template!r}; known are {', '.join(TEMPLATES)}")
        if template == "chat" and not getattr(tokenizer, "chat_template", None):
            raise ValueError("template 'chat': this tokenizer has no chat template")
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no end token (eos_token); add one to its folder")
        self.tokenizer, self.seq2seq, self.template = tokenizer, seq2seq, template
        self.max_input, self.max_target = max_input, max_target
        self.max_tokens = max_tokens if max_tokens is not None else max_input + max_target
        self.end: int = tokenizer.eos_token_id
        self.pad: int = self.end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        # SentencePiece puts a space before a text by itself
        self._space = "" if self._pieces("a")[0].startswith("▁") else " "
        self._start = self._first_ids()
        self._pair = functools.lru_cache(maxsize=1 << 16)(self._encode)

    def encode(self, record: Mapping[str, Any]) -> tuple[list[int], list[int]]:
        """``(prompt ids, answer ids)`` as they are trained on."""
        try:
            prompt, answer = self._pair(record["input"], record["output"])
        except ValueError as error:
            raise ValueError(f"record {record.get('id')!r}: {error}") from None
        return list(prompt), list(answer)

    def prompt(self, record: Mapping[str, Any]) -> list[int]:
        """The ids that generation starts from; a causal one may fill ``max_tokens`` by itself.

        No reference is looked at. A record that training had to cut for its answer therefore keeps
        a few more words here.
        """
        text = record["input"]
        if self.seq2seq:
            return self._source(text)
        return self._prompt(text, min(self.max_input, self.max_tokens))

    def length(self, record: Mapping[str, Any]) -> int:
        """Tokens of prompt and answer together."""
        return sum(map(len, self.encode(record)))

    def answer_length(self, answer: str) -> int:
        """Tokens of an answer text, the end token counted."""
        return len(self._target(answer) if self.seq2seq else self._answer("", answer))

    def check(self, records: Sequence[Mapping[str, Any]], task: str) -> None:
        """``ValueError`` that names the first record which cannot be encoded."""
        for place, record in enumerate(records):
            try:
                self.encode(record)
            except ValueError as error:
                raise ValueError(f"task {task!r}, record {place}: {error}") from None

    def collate(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """int64 ``input_ids``, ``labels`` [B, T], padded on the right; labels -100 off the answer.

        For a causal model there is no attention mask: the padding comes after everything that is
        scored, so nothing can see it. Encoder-decoders get one, and ``labels`` of their own length.
        """
        pairs = [self.encode(record) for record in records]
        if self.seq2seq:
            batch = self._padded([prompt for prompt, _ in pairs])
            return {**batch, "labels": _rows([answer for _, answer in pairs], IGNORED)}
        labels = [[IGNORED] * len(prompt) + answer for prompt, answer in pairs]
        return {
            "input_ids": _rows([prompt + answer for prompt, answer in pairs], self.end),
            "labels": _rows(labels, IGNORED),
        }

    def prompts(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """int64 ``input_ids``, ``attention_mask`` [B, T]; padded on the left for a causal model."""
        return self._padded([self.prompt(record) for record in records], left=not self.seq2seq)

    def text(self, ids: Sequence[int]) -> str:
        """Decoded, without special tokens, stripped."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def _padded(self, rows: Sequence[Sequence[int]], left: bool = False) -> dict[str, Tensor]:
        ones = [[1] * len(row) for row in rows]
        return {
            "input_ids": _rows(rows, self.pad, left),
            "attention_mask": _rows(ones, 0, left),
        }

    def _encode(self, text: str, answer: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if self.seq2seq:
            return tuple(self._source(text)), tuple(self._target(answer))
        answer_ids = self._answer(text, answer)
        budget = self.max_tokens - len(answer_ids)
        if budget < 1:
            raise ValueError(f"its answer fills all {self.max_tokens} tokens; raise max_tokens")
        prompt = self._prompt(text, min(self.max_input, budget))
        return tuple(prompt), tuple(answer_ids)

    def _source(self, text: str) -> list[int]:
        around = self._around(text)
        return self._cut(around[0] + text + around[1], self.max_input)

    def _target(self, answer: str) -> list[int]:
        return self._cut(answer, self.max_target)

    def _cut(self, text: str, limit: int) -> list[int]:
        ids = self.tokenizer(text, truncation=True, max_length=limit)["input_ids"]
        return list(ids)

    def _answer(self, text: str, answer: str) -> list[int]:
        before = self._around(text)[1] or text.rstrip(" ")
        space = "" if before.endswith(("\n", "\t")) or not before else self._space
        return [*self._ids(space + answer), self.end]

    def _prompt(self, text: str, budget: int) -> list[int]:
        text = text.rstrip(" ")  # the answer brings its space
        before, after = self._around(text)
        ids = self._start + self._ids(before + text + after)
        if len(ids) <= budget:
            return ids
        head_text, _, rest = text.partition("\n")
        tail_text = re.search(r"\s*[^\n]*\Z", rest)
        assert tail_text is not None  # the pattern matches the empty string
        head = self._start + self._ids(before + head_text)
        tail = self._ids(tail_text.group() + after)
        room = budget - len(head) - len(tail)
        if room < 0:
            kept = max(0, budget - len(self._start))
            return (self._start + ids[len(ids) - kept :])[:budget]
        return head + self._ids("\n" + rest[: tail_text.start()])[:room] + tail

    def _around(self, text: str) -> tuple[str, str]:
        """What the template puts before and after the text."""
        if self.template == "plain":
            return "", ""
        if self.template == "alpaca":
            before, _, after = ALPACA.partition("{}")
            return before, after
        whole = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
        for part in (text, text.strip()):
            before, found, after = whole.partition(part) if part else ("", "", "")
            if found:
                return before, after
        raise ValueError("the chat template does not hold its input as it is")

    def _first_ids(self) -> list[int]:
        """The begin token, where the tokenizer starts a text with one (and no template does)."""
        begin = self.tokenizer.bos_token_id
        if self.seq2seq or begin is None or self.template == "chat":
            return []
        return [begin] if self.tokenizer("a")["input_ids"][0] == begin else []

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _pieces(self, text: str) -> list[str]:
        return list(self.tokenizer.convert_ids_to_tokens(self._ids(text))) or [""]


def _rows(rows: Sequence[Sequence[int]], fill: int, left: bool = False) -> Tensor:
    width = max(len(row) for row in rows)
    table = torch.full((len(rows), width), fill, dtype=torch.int64)
    for place, row in enumerate(rows):
        start = width - len(row) if left else 0
        table[place, start : start + len(row)] = torch.tensor(row, dtype=torch.int64)
    return table
