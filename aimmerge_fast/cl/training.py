"""The updates of one stage: batches, gradients, clipping, learning rate, a method's hooks."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from aimmerge_fast.cl.batches import batch_at
from aimmerge_fast.cl.data import Record
from aimmerge_fast.cl.encode import IGNORED
from aimmerge_fast.cl.methods.base import Method, Trainee
from aimmerge_fast.cl.parallel import Ranks


@dataclasses.dataclass(frozen=True)
class Update:
    """One optimiser update.

    ``loss``: () on the training device, mean cross-entropy of the batch's answer tokens; reading
    it waits for the device, so callers read several at once.
    """

    step: int
    loss: Tensor
    learning_rate: float


def new_optimizer(parameters: Sequence[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """AdamW as the authors' code sets it: betas (0.9, 0.999), eps 1e-8, no weight decay."""
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)


def fresh_moments(optimizer: torch.optim.Optimizer) -> None:
    """Every stage starts as a new process of the authors' code does: without moments."""
    optimizer.state.clear()


def updates(
    method: Method, records: Sequence[Record], stage: str, done: int, steps: int, ranks: Ranks
) -> Iterator[Update]:
    """Make updates ``done + 1`` to ``steps`` of a stage, yielding after each.

    The batch of update k, its order and its dropout are functions of (seed, stage, k) alone, so a
    resumed stage goes on to the same bits. The loss is the mean over the answer tokens of the whole
    batch, however it is cut into passes and dealt out to ranks.
    """
    trainee, config = method.trainee, method.trainee.config
    key = f"{trainee.seed}/{stage}"
    lengths = [trainee.encoder.length(r) for r in records] if config.bucket else None
    for step in range(done + 1, steps + 1):
        rate = config.learning_rate(step, steps)
        for group in trainee.optimizer.param_groups:
            group["lr"] = rate
        batch = batch_at(records, step, config.batch, key, lengths, config.bucket)
        seed_everything(f"{key}/{step}/{ranks.rank}")
        loss = backward(trainee, batch, ranks)
        if config.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(trainee.parameters(), config.max_grad_norm)
        method.after_backward()
        trainee.optimizer.step()
        trainee.optimizer.zero_grad(set_to_none=True)
        method.after_update()
        yield Update(step, loss, rate)


def read_losses(pending: list[Tensor], last: int, what: str, ranks: Ranks) -> list[float]:
    """Wait for the losses of the updates up to ``last``; ``pending`` is emptied.

    Every rank reads rank 0's, so all of them end in the same update. Raises: FloatingPointError
    for a loss that is not finite; ``what`` says whose it is.
    """
    values: list[float] = ranks.of_main(torch.stack(pending)).tolist()
    pending.clear()
    for step, value in enumerate(values, last - len(values) + 1):
        if not math.isfinite(value):
            raise FloatingPointError(
                f"{what}: the training loss of update {step} is {value}; lower lr, or set "
                "max_grad_norm (the state before it is saved)"
            )
    return values


def seed_everything(key: str) -> None:
    """Seed torch (all devices), numpy and random from a name."""
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
    torch.manual_seed(number >> 1)  # torch takes 63 bits
    np.random.seed(number % (1 << 32))
    random.seed(number)


def backward(
    trainee: Trainee, records: Sequence[Record], ranks: Ranks, purpose: str = "training"
) -> Tensor:
    """Gradients of the batch's mean loss, summed over ranks; returns that loss, ().

    ``purpose``: as what ``Trainee.rows`` counts the records.
    """
    size = trainee.config.micro_batch or trainee.config.batch
    shares = [list(records[rank :: ranks.world]) for rank in range(ranks.world)]
    passes = [
        [trainee.encoder.collate(share[at : at + size]) for at in range(0, len(share), size)]
        for share in shares
    ]
    tokens = sum(_answer_tokens(batch) for share in passes for batch in share)
    total = torch.zeros((), device=trainee.device)
    for batch in passes[ranks.rank]:
        loss, _ = trainee.loss.total(trainee.model, batch)
        (loss / tokens).backward()
        total += loss.detach()
    trainee.rows[purpose] += len(records)
    ranks.add_gradients(trainee.parameters())
    return ranks.total(total) / tokens


def _answer_tokens(batch: dict[str, Any]) -> int:
    labels = batch["labels"]
    # a causal model does not predict the first position, where no answer begins anyway
    return int((labels != IGNORED).sum())
