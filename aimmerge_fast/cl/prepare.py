"""From a run's settings to what its arms share; everything that can be wrong shows here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console

from aimmerge_fast.cl import models
from aimmerge_fast.cl.config import RunConfig
from aimmerge_fast.cl.context import Context
from aimmerge_fast.cl.data import TaskData, load_stream
from aimmerge_fast.cl.encode import Encoder
from aimmerge_fast.cl.estimate import Estimate, estimate
from aimmerge_fast.cl.machine import commit
from aimmerge_fast.cl.metrics import rouge_l
from aimmerge_fast.cl.parallel import Ranks
from aimmerge_fast.cl.progress import View
from aimmerge_fast.cl.streams import Stream, stream


def prepare(config: RunConfig, console: Console | None = None) -> Context:
    """Load records and model; everything that can be wrong with them shows here."""
    if config.threads:
        torch.set_num_threads(config.threads)
    ranks = Ranks()
    chosen, tasks = load_tasks(config)
    if any(task.metric == "rougeL" for task in tasks):
        rouge_l("", "")  # a missing package is said before anything is trained
    sha256 = models.fingerprint(config.model)
    estimate_of(config, tasks).require_fit(ranks.device)
    loaded = models.load_model(config.model, dtype=config.dtype, attention=config.attention)
    encoder = new_encoder(config, loaded.tokenizer, loaded.seq2seq)
    for task in tasks:
        encoder.check(task.train, task.name)
    return Context(
        config=config,
        stream=chosen,
        tasks=tasks,
        base=loaded.model.to(ranks.device),
        encoder=encoder,
        seq2seq=loaded.seq2seq,
        model_sha256=sha256,
        ranks=ranks,
        view=View(console if ranks.is_main else None),
        commit=commit(),
    )


def load_tasks(config: RunConfig) -> tuple[Stream, list[TaskData]]:
    """The run's stream and records; ``ValueError`` for what cannot be trained on."""
    chosen, tasks = load_stream(
        config.data,
        stream(config.stream, folder=config.data),
        format=config.format,
        available=config.available,
        variant=config.variant,
        test_items=config.test_items,
        dev_items=config.dev_items,
        selects=config.select == "best",
    )
    if config.select == "best" and not any(task.dev for task in tasks):
        raise ValueError("select='best' needs dev records, and no task has any; use select='last'")
    return chosen, tasks


def new_encoder(config: RunConfig, tokenizer: Any, seq2seq: bool) -> Encoder:
    return Encoder(
        tokenizer,
        seq2seq=seq2seq,
        max_input=config.max_input,
        max_target=config.max_target,
        max_tokens=config.max_tokens,
        template=config.template,
    )


def estimate_of(config: RunConfig, tasks: Sequence[TaskData]) -> Estimate:
    """Memory that training takes, before anything is loaded: two letters a token at the most."""
    letters = max(len(r["input"]) + len(r["output"]) for task in tasks for r in task.train)
    limit = config.max_tokens or config.max_input + config.max_target
    return estimate(
        config.model,
        dtype=config.dtype,
        batch=config.micro_batch or config.batch,
        tokens=min(limit, letters // 2 + 16),
        rank=config.rank,
        targets=config.targets,
        attention=config.attention,
    )
