"""AIM as the released code does it, statement by statement, in plain torch.

Per update: importance scores with an ``isnan().any()`` read per tensor, a fresh DataLoader iterator
for the history batch, two losses read with ``.item()``. Per merge: the released sequence of small
kernels, and memory steps on fresh iterators. Its interval is held at ``s_init``, as ours is here.
``dead_work=False`` leaves out the importance scores, which its merge never reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from overhead import rivals
from training.arms import Arm, Setup
from training.data import Batch

GAMMA, F_MAX = 2.0, 3
HostRow = tuple[Tensor, Tensor]


class Merge(rivals.Released):
    """The released merge on the live parameters, weighted anew each time."""

    def weigh(self, alphas: rivals.Alphas) -> None:
        self._alphas = alphas


class Scores(rivals.Importance):
    """The importance scores on this step's gradients."""

    def update(self, gradients: Sequence[Tensor]) -> None:
        self._grads = list(gradients)
        self.step()
        self._grads = []


class Signal:
    """The forgetting signal of the released code, S held; all of it on the host."""

    def __init__(self, S: int) -> None:
        self.S, self.step, self.due = S, 0, S
        self.begin()

    def begin(self) -> None:
        self.seen, self.F, self.threshold = 0, 0, 0.0
        self.samples: list[float] = []

    def judge(self, loss: float) -> bool:
        """Count one update and its history loss; whether to merge now."""
        self.step += 1
        collected = int(self.S * 2 / 3)
        if self.seen <= collected:
            self.samples.append(loss)
            if self.seen == collected:
                self.threshold = GAMMA * (sum(self.samples) / len(self.samples))
            self.seen += 1
        elif loss >= self.threshold or self.step >= self.due + self.S:
            self.F += 1
        return (self.step >= self.due and self.F >= 1) or self.F >= F_MAX

    def merged(self) -> None:
        self.due = self.step + self.S
        self.begin()

    def alphas(self) -> rivals.Alphas:
        light = self.S <= 70
        if self.F > 1:
            return (0.5, 0.5) if light else (0.4, 0.6)
        return (0.6, 0.4) if light else (0.5, 0.5)


class Released(Arm):
    """The released trainer's loop around the same model, batches and optimiser.

    It is spared what is not AIM's: autograd around the merge, four micro-batches per update, a
    collator that tokenises.

    Args:
        dead_work: update the importance scores.
        samplers: order of the memory for the history batches and for the memory steps; by default
            the DataLoader's own shuffling.
    """

    name = "released"
    title = "AIM as released"
    dead_work = True

    def __init__(
        self, setup: Setup, samplers: Sequence[Sampler[int] | None] = (None, None)
    ) -> None:
        super().__init__(setup)
        live = [parameter.detach() for parameter in setup.parameters]  # same memory, no autograd
        self._merge_of = Merge(live, (0.5, 0.5))
        self._inner, self._outer = (Scores(live) if self.dead_work else None for _ in range(2))
        self._signal = Signal(self.settings.s_init)
        bank, rows = setup.bank, setup.memory_row_numbers
        records = [(bank.inputs_on_host[row], bank.labels_on_host[row]) for row in rows]
        sizes = (self.settings.history_rows, self.settings.memory_rows)
        self._history, self._memory = (
            DataLoader(
                records,  # type: ignore[arg-type]
                batch_size=size,
                shuffle=sampler is None,
                sampler=sampler,
                collate_fn=_stacked,
            )
            for size, sampler in zip(sizes, samplers, strict=True)
        )

    def warm_up(self) -> None:
        super().warm_up()
        live = [parameter.detach() for parameter in self.setup.parameters]
        self._merge_of = Merge(live, (0.5, 0.5))  # its anchor is the parameters at the task's start

    def update(self, batch: Batch) -> Tensor:
        """One update with what the released trainer does between the step and ``zero_grad``."""
        return self._update(batch, self._inner)

    def step(self, number: int) -> None:
        rows = self.setup.order.at(number)
        self.used.task_rows += rows
        self.update(self.setup.bank.batch(rows)).item()
        batch = self._fresh(self._history)
        self.used.history_rows += len(batch["input_ids"])
        with torch.no_grad():
            history_loss = self.setup.model(**batch).loss.item()
        if self._signal.judge(history_loss):
            self._merge()

    def _merge(self) -> None:
        self._merge_of.open_()
        for _ in range(self._signal.S):
            batch = self._fresh(self._memory)
            self.used.memory_rows += len(batch["input_ids"])
            self.used.memory_steps += 1
            self._update(batch, self._outer)
        self._merge_of.weigh(self._signal.alphas())
        self._merge_of.close_()
        self._signal.merged()
        self.used.merges += 1

    def _update(self, batch: Batch, scores: Scores | None) -> Tensor:
        loss = self.backward(batch)
        self.optimizer.step()
        if scores:
            scores.update([p.grad for p in self.setup.parameters if p.grad is not None])
        self.optimizer.zero_grad(set_to_none=True)
        return loss

    def _fresh(self, loader: DataLoader[HostRow]) -> Batch:
        batch: Batch = next(iter(loader))
        return {name: tensor.to(self.setup.device) for name, tensor in batch.items()}


class ReleasedLean(Released):
    """The same without the importance scores."""

    name = "released-lean"
    title = "AIM as released, no dead work"
    dead_work = False


class Drawn(Sampler[int]):
    """Gives a DataLoader, at every new iterator, the indices that ``draw`` names."""

    def __init__(self, draw: Iterator[list[int]], size: int) -> None:
        self._draw, self._size = draw, size

    def __iter__(self) -> Iterator[int]:
        return iter(next(self._draw))

    def __len__(self) -> int:
        return self._size


def _stacked(rows: list[HostRow]) -> Batch:
    inputs, labels = zip(*rows, strict=True)
    return {"input_ids": torch.stack(inputs), "labels": torch.stack(labels)}
