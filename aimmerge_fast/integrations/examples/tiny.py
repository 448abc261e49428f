"""What the examples train: a Llama of a few thousand weights with LoRA, on two tasks."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import peft
import torch
import transformers

TOKENS, LENGTH = 16, 6
UPDATES, BATCH = 24, 8
TASKS = {"next": 1, "after next": 2}  # each token is to be answered by the one so many further


def model() -> Any:
    """The same on every process."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=TOKENS,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    settings = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"])
    return peft.get_peft_model(transformers.LlamaForCausalLM(config), settings)


def records(task: str, count: int = UPDATES * BATCH) -> list[dict[str, Any]]:
    """``{"tokens": [...], "label": the class that the memory balances}``."""
    draw, shift = random.Random(task), TASKS[task]
    made = []
    for _ in range(count):
        first = draw.randrange(TOKENS)
        tokens = [(first + shift * k) % TOKENS for k in range(LENGTH)]
        made.append({"tokens": tokens, "label": first})
    return made


def collate(rows: list[Any]) -> dict[str, torch.Tensor]:
    tokens = torch.tensor([row["tokens"] for row in rows])
    return {"input_ids": tokens, "labels": tokens.clone()}


def batches(
    rows: list[Any], done: int, rank: int, world: int
) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
    """(update, this rank's share of its batch) for what is left after ``done`` updates."""
    for update in range(done + 1, UPDATES + 1):
        batch = rows[(update - 1) * BATCH : update * BATCH]
        yield update, collate(batch[rank::world])
