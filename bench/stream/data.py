"""Benchmark records of ``real_stream.py``: tasks, splits, the order of batches, and tokens.

A data folder holds ``{train,dev,test}/<task>_T5.json``, each a list of records with the strings
``input`` (the whole prompt) and ``output`` (the answer).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

Record = Mapping[str, Any]
IGNORED = -100  # label of a position that is not part of the answer


@dataclasses.dataclass(frozen=True)
class Task:
    """One task of the stream; ``split_note`` says where the test records come from."""

    name: str
    train: list[Record]
    test: list[Record]
    split_note: str
    sha256: str


def load_task(folder: Path, name: str, test_items: int, seed: int) -> Task:
    """Read a task and draw at most ``test_items`` seeded test records (0: all of them).

    Without a test file half of dev selects and the other half tests; the two are the even and the
    odd places of one seeded permutation. A missing file raises ``FileNotFoundError`` naming it.
    """
    digest = hashlib.sha256()
    train = _read(folder, "train", name, digest)
    if (folder / "test" / f"{name}_T5.json").is_file():
        test, note = _read(folder, "test", name, digest), "test file"
    else:
        dev = _read(folder, "dev", name, digest)
        random.Random(f"{seed}/{name}/dev").shuffle(dev)
        test = dev[1::2]
        note = f"no test file: half of dev ({len(dev) - len(test)}) selects, half tests"
    if test_items and test_items < len(test):
        test = random.Random(f"{seed}/{name}/test").sample(test, test_items)
    return Task(name, train, test, f"{note}; {len(test)} items used", digest.hexdigest())


def batch_at(records: Sequence[Record], step: int, size: int, seed: str) -> list[Record]:
    """The batch of optimiser step ``step`` (from 1), a pure function of its arguments.

    Every epoch is a new seeded permutation; its last partial batch is dropped. Having no iterator
    state, an interrupted run finds its place by the step number alone.
    """
    per_epoch = max(1, len(records) // size)
    epoch, place = divmod(step - 1, per_epoch)
    order = list(range(len(records)))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return [records[i] for i in order[place * size : (place + 1) * size]]


class Encoder:
    """Turns records into token ids: ``input``, then ``" " + output``, then the end token.

    A prompt over the budget keeps its first line (question and options), its last line
    (``Answer:``) and as much of the text between them as fits, from its start. If those two lines
    alone are too long, the prompt keeps its last tokens. The answer is never cut.
    """

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.end: int = tokenizer.eos_token_id
        if self.end is None:
            raise ValueError("the tokenizer has no end token (eos_token); add one to its folder")

    def answer(self, record: Record) -> list[int]:
        return [*self._ids(" " + record["output"]), self.end]

    def prompt(self, record: Record, budget: int) -> list[int]:
        """At most ``budget`` ids of the record's input; ``ValueError`` if none would remain."""
        if budget < 1:
            raise ValueError(
                f"record {record.get('id')!r}: its answer fills all {self.max_tokens} tokens; "
                "raise --max-tokens"
            )
        text = record["input"]
        ids = self._ids(text)
        if len(ids) <= budget:
            return ids
        head_text, _, rest = text.partition("\n")
        tail_text = re.search(r"\s*[^\n]*\Z", rest)
        assert tail_text is not None  # the pattern matches the empty string
        head, tail = self._ids(head_text), self._ids(tail_text.group())
        room = budget - len(head) - len(tail)
        if room < 0:
            return ids[-budget:]
        return head + self._ids("\n" + rest[: tail_text.start()])[:room] + tail

    def encode(self, record: Record) -> tuple[list[int], list[int]]:
        """``(prompt ids, answer ids)``, together at most ``max_tokens`` long."""
        answer = self.answer(record)
        return self.prompt(record, self.max_tokens - len(answer)), answer

    def collate(self, records: Sequence[Record]) -> dict[str, torch.Tensor]:
        """``input_ids`` and ``labels``, int64 [B, T], padded on the right.

        There is no attention mask: under causal attention the padding comes after everything that
        is scored, so nothing can see it.
        """
        pairs = [self.encode(record) for record in records]
        length = max(len(prompt) + len(answer) for prompt, answer in pairs)
        input_ids = torch.full((len(pairs), length), self.end)
        labels = torch.full((len(pairs), length), IGNORED)
        for row, (prompt, answer) in enumerate(pairs):
            end = len(prompt) + len(answer)
            input_ids[row, :end] = torch.tensor(prompt + answer)
            labels[row, len(prompt) : end] = torch.tensor(answer)
        return {"input_ids": input_ids, "labels": labels}

    def text(self, ids: Sequence[int]) -> str:
        """Decoded, stripped and lower-cased: what exact match compares."""
        kept = [i for i in ids if i != self.end]
        return str(self.tokenizer.decode(kept, skip_special_tokens=True)).strip().lower()

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def _read(folder: Path, split: str, name: str, digest: Any) -> list[Record]:
    path = folder / split / f"{name}_T5.json"
    if not path.is_file():
        found = sorted(p.name.removesuffix("_T5.json") for p in path.parent.glob("*_T5.json"))
        raise FileNotFoundError(
            f"task {name!r} has no file {path}; that folder has: {', '.join(found) or 'no tasks'}"
        )
    content = path.read_bytes()
    digest.update(content)
    records: list[Record] = json.loads(content)
    for place, record in enumerate(records if isinstance(records, list) else [None]):
        fields = record if isinstance(record, dict) else {}
        if not all(isinstance(fields.get(key), str) for key in ("input", "output")):
            raise ValueError(
                f"{path}, record {place}: needs the strings 'input' and 'output' in a JSON list"
            )
    if not records:
        raise ValueError(f"{path} holds no records")
    return records
