"""Tiny trainers of transformers and TRL, and the plain loop that does again what they did."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import peft
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments, get_scheduler

from aimmerge_fast import AIMConfig, FastAIMMerger, RehearsalMemory
from aimmerge_fast.events import Event, Open
from aimmerge_fast.integrations.transformers import AIMMergeCallback
from tests.cl.tiny_models import WORDS, causal_model, word_tokenizer
from tests.loops import bits

#: merges every few updates: at the latest when two intervals have passed
CONFIG: dict[str, Any] = {"s_init": 2, "s_max": 4, "gamma_forget": 1.0, "history_batch": 6}
STEPS = 10

#: What transformers, accelerate, peft and TRL warn about each other; nothing of ours.
NOISE = (
    # peft reads a property that transformers has deprecated
    "ignore:`is_gradient_checkpointing`:FutureWarning",
    # TRL's configs set fields by names that transformers has deprecated
    "ignore:`gradient_checkpointing(_kwargs)?` is deprecated:FutureWarning",
)


def arguments(
    folder: Path, kind: type[TrainingArguments] = TrainingArguments, **fields: Any
) -> Any:
    chosen = {
        "output_dir": str(folder),
        "use_cpu": True,
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.02,
        "save_strategy": "no",
        "logging_steps": 2,
        "disable_tqdm": True,
        "report_to": "none",
        "dataloader_pin_memory": False,  # there is no accelerator to pin it for
    }
    return kind(**{**chosen, **fields})


def texts(count: int, seed: int, shift: int = 0) -> list[dict[str, str]]:
    """Lines of words in which each word says the next one; ``shift`` changes the rule."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        line = [draw.randrange(len(WORDS)) for _ in range(draw.randint(2, 4))]
        line += [(word + 1 + shift) % len(WORDS) for word in line]
        rows.append({"text": " ".join(WORDS[word] for word in line)})
    return rows


def tokenised(count: int = 40, seed: int = 1, shift: int = 0) -> datasets.Dataset:
    """Rows as a Trainer's dataset has them, and a column that no model takes."""
    tokenizer = word_tokenizer()
    rows = []
    for number, row in enumerate(texts(count, seed, shift)):
        ids = tokenizer(row["text"])["input_ids"]
        rows.append({"input_ids": ids, "labels": ids, "number": number})
    return datasets.Dataset.from_list(rows)


def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Pads to the right; a column of a row that is no input of the model is an error."""
    assert all(set(row) == {"input_ids", "labels"} for row in rows)
    width = max(len(row["input_ids"]) for row in rows)
    made: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "attention_mask": []}
    for row in rows:
        ids, missing = list(row["input_ids"]), width - len(row["input_ids"])
        made["input_ids"].append(ids + [0] * missing)
        made["labels"].append(list(row["labels"]) + [-100] * missing)
        made["attention_mask"].append([1] * len(ids) + [0] * missing)
    return {name: torch.tensor(values) for name, values in made.items()}


def lora(dropout: float = 0.0) -> Any:
    """The same model every time: a tiny Llama with an adapter that has begun to learn."""
    model = causal_model(seed=3)
    torch.manual_seed(4)
    settings = {"r": 2, "lora_dropout": dropout, "init_lora_weights": False}
    return peft.get_peft_model(
        model, peft.LoraConfig(target_modules=["q_proj", "v_proj"], **settings)
    )


def remembered(count: int = 30, seed: int = 9, shift: int = 5) -> RehearsalMemory:
    """The memory of a task before the first one."""
    memory = RehearsalMemory(ratio=0.5)
    memory.add("earlier", tokenised(count, seed, shift))
    return memory


def callback(memory: RehearsalMemory | None = None, **fields: Any) -> AIMMergeCallback:
    memory = memory if memory is not None else remembered()
    return AIMMergeCallback(AIMConfig(**{**CONFIG, **fields}), memory=memory)


def trained(
    aim: AIMMergeCallback | None, folder: Path, model: Any = None, **fields: Any
) -> Trainer:
    """A Trainer that has trained one task."""
    trainer = made(aim, folder, model, **fields)
    if aim is not None:
        aim.attach(trainer, task="now")
    trainer.train()
    return trainer


def made(
    aim: AIMMergeCallback | None,
    folder: Path,
    model: Any = None,
    trainer: type[Trainer] = Trainer,
    extra: dict[str, Any] | None = None,
    **fields: Any,
) -> Any:
    keywords: dict[str, Any] = {"train_dataset": tokenised(), "data_collator": collate}
    return trainer(
        model=model if model is not None else lora(),
        args=arguments(folder, **fields),
        callbacks=[aim] if aim is not None else None,
        **{**keywords, **(extra or {})},
    )


def weights(model: nn.Module) -> bytes:
    return bits(p for p in model.parameters() if p.requires_grad)


def merges(events: list[Event]) -> int:
    return sum(isinstance(event, Open) for event in events)


# ---- once more, in a plain loop --------------------------------------------------------------


@dataclasses.dataclass
class Pass:
    """One call of ``training_step``: the update it belongs to, and what it began with."""

    update: int
    random: Tensor
    inputs: dict[str, Tensor]
    items: Any


def recording(base: type[Trainer]) -> type[Any]:
    """``base``, remembering what its ``training_step`` was given."""

    class Recording(base):  # type: ignore[valid-type, misc]
        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            kept = {name: value.clone() for name, value in inputs.items()}
            random_state = torch.get_rng_state()
            passes = self.__dict__.setdefault("passes", [])
            passes.append(Pass(self.state.global_step, random_state, kept, num_items_in_batch))
            return super().training_step(model, inputs, num_items_in_batch)

    return Recording


@dataclasses.dataclass
class Plain:
    """How a plain loop computes what a trainer computes.

    loss: (model, one pass, passes of the update) -> the loss whose backward pass it makes.
    collate, rehearse: batch of memory records, and its loss.
    """

    loss: Callable[[Any, Pass, int], Tensor]
    rehearse: Callable[[Any, Any], Tensor] = lambda model, batch: model(**batch).loss
    collate: Callable[[list[Any]], Any] = lambda rows: collate([without_number(r) for r in rows])
    autocast: Callable[[], Any] = contextlib.nullcontext
    scaler: Any = None


def causal_loss(model: Any, one: Pass, passes: int) -> Tensor:
    loss: Tensor = model(**one.inputs, num_items_in_batch=one.items).loss
    return loss


def again(
    trainer: Any, model: Any, config: AIMConfig, memory: RehearsalMemory, plain: Plain
) -> FastAIMMerger:
    """What ``trainer`` did, with ``model``, in a plain loop around ``FastAIMMerger``."""
    args = trainer.args
    decayed = set(trainer.get_decay_parameter_names(model))
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [[p for n, p in trainable if (n in decayed) is wanted] for wanted in (True, False)]
    optimizer = torch.optim.AdamW(
        [{"params": group} for group in groups], lr=args.learning_rate, weight_decay=0.0, fused=True
    )
    scheduler = get_scheduler("linear", optimizer, 0, args.max_steps)
    merger = FastAIMMerger(
        model,
        dataclasses.replace(config, max_grad_norm=args.max_grad_norm or None),
        optimizer=optimizer,
        collate=plain.collate,
        loss_fn=plain.rehearse,
        autocast=plain.autocast,
        scaler=plain.scaler,
        micro_batch=args.per_device_train_batch_size,
    )
    model.train()
    passes = copy.deepcopy(trainer.passes)
    with merger.task("now", memory):
        for update in range(args.max_steps):
            mine = [one for one in passes if one.update == update]
            torch.set_rng_state(mine[0].random)
            for one in mine:
                with plain.autocast():
                    loss = plain.loss(model, one, len(mine))
                (plain.scaler.scale(loss) if plain.scaler else loss).backward()
            _update(model, optimizer, plain.scaler, args.max_grad_norm)
            scheduler.step()
            merger.step()
    return merger


def _update(model: Any, optimizer: Any, scaler: Any, max_grad_norm: float) -> None:
    if scaler:
        scaler.unscale_(optimizer)
    if max_grad_norm:
        nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    if scaler:
        scaler.step(optimizer)
        scaler.update()
    else:
        optimizer.step()
    optimizer.zero_grad()


def without_number(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "number"}
