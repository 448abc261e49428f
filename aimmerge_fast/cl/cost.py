"""Rough times: tokens of the records, floating-point operations, and the speed of this machine."""

from __future__ import annotations

import dataclasses
import random
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

from aimmerge_fast.cl import model_files
from aimmerge_fast.cl.config import RunConfig
from aimmerge_fast.cl.data import TaskData
from aimmerge_fast.cl.encode import Encoder
from aimmerge_fast.cl.prepare import new_encoder

#: Part of a large matmul's speed that a training pass and greedy generation reached where they
#: were measured (SmolLM2-135M in bfloat16 on one core of a CPU).
PASS, GENERATION = 0.5, 0.2
_SAMPLE = 64  # records of a task whose tokens are counted


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Mean tokens of a task: a row of a training batch with its padding, a prompt, an answer."""

    row: float
    prompt: float
    answer: float


@dataclasses.dataclass(frozen=True)
class Speed:
    """Of this machine in the run's dtype: operations per second of a matmul; and parameters that
    take part in the pass of one token (all but the tables of words: the head acts on answers)."""

    flops: float
    parameters: int

    def update(self, tokens: float) -> float:
        """Seconds to train on so many tokens: forward, and backward to activations and LoRA."""
        return 4.0 * self.parameters * tokens / (PASS * self.flops)

    def forward(self, tokens: float) -> float:
        return 2.0 * self.parameters * tokens / (PASS * self.flops)

    def generate(self, tokens: float) -> float:
        """Seconds to read and write so many tokens greedily."""
        return 2.0 * self.parameters * tokens / (GENERATION * self.flops)


def load_encoder(config: RunConfig) -> tuple[Encoder, int]:
    """The run's encoder, without the model's weights, and the size of the model's tables of words.

    Errors as of ``load_model``.
    """
    from transformers import AutoTokenizer

    with model_files.unpacked(config.model) as (folder, gguf):
        kind = model_files.read_config(folder, gguf)
        source = {"gguf_file": gguf} if gguf else {}
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, **source)
    encoder = new_encoder(config, tokenizer, bool(kind.is_encoder_decoder))
    text = getattr(kind, "get_text_config", lambda: kind)()
    tables = 1 if getattr(kind, "tie_word_embeddings", True) else 2
    return encoder, tables * text.vocab_size * text.hidden_size


def count_tokens(encoder: Encoder, task: TaskData, rows: int) -> Tokens:
    """Of a seeded sample of the task's records, in batches of ``rows``."""
    draw = random.Random(task.name)
    trained = draw.sample(task.train, min(_SAMPLE, len(task.train)))
    tested = draw.sample(task.test, min(_SAMPLE, len(task.test)))
    lengths = [encoder.length(record) for record in trained]
    longest = [max(draw.choices(lengths, k=rows)) for _ in range(_SAMPLE)]
    return Tokens(
        row=statistics.fmean(longest),
        prompt=statistics.fmean(len(encoder.prompt(record)) for record in tested),
        answer=statistics.fmean(encoder.answer_length(record["output"]) for record in tested),
    )


def matmul_speed(
    device: torch.device, dtype: str, shape: Sequence[int] = (512, 1024, 1024), seconds: float = 0.5
) -> float:
    """Operations per second of a [m, k] x [k, n] product, measured for ``seconds``."""
    m, k, n = shape
    kind = model_files.DTYPES[dtype]
    left, right = (torch.ones(size, device=device, dtype=kind) for size in ((m, k), (k, n)))
    left @ right  # the first one loads what it needs
    _wait(device)
    done = 0
    started = end = time.perf_counter()
    while not done or end - started < seconds:
        for _ in range(4):
            left @ right
        _wait(device)
        done, end = done + 4, time.perf_counter()
    return 2.0 * m * k * n * done / (end - started)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
