"""Runs in which all ranks live and rank 1 is wrong: what every rank says, and is left with."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from aimmerge_fast import FastAIMMerger
from tests.distributed import nets
from tests.distributed.failing import FIXED, raised
from tests.distributed.runs import Run, local_bits


def differ(rank: int, world: int) -> dict[str, Any]:
    """Rank 1 is built, or fed, otherwise; what all ranks say by what differs."""
    other = rank == 1

    def build(**arguments: Any) -> None:
        Run(rank, world, **arguments)

    def task(name: str = "later", memory: Any = None, resumed: bool = False) -> None:
        run = Run(rank, world, config=FIXED)
        with run.merger.task(name, memory or run.memory):
            pass

    def other_adapters() -> None:
        model = nets.lora()
        model.add_adapter("second", model.peft_config["default"])
        model.base_model.set_adapter(["default", "second"])
        wrapped = nets.wrap(model, "ddp")
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        FastAIMMerger(wrapped, optimizer=optimizer, adapters="second" if other else "default")

    seed = nets.memory_of("plain")
    seed.seed += other
    return {
        "config": raised(lambda: build(config={"s_init": 4 + other})),
        "micro_batch": raised(lambda: build(keywords={"micro_batch": 2 + other})),
        "tasks_before": raised(lambda: build(keywords={"tasks_before": int(other)})),
        "adapters": raised(other_adapters),
        "task": raised(lambda: task("other" if other else "later")),
        "records": raised(lambda: task(memory=nets.memory_of("plain", 20 + other))),
        "seed": raised(lambda: task(memory=seed)),
        "weights": raised(lambda: drifted(Run(rank, world, config=FIXED), other, start=True)),
        "drift": raised(lambda: drifted(Run(rank, world, config=FIXED), other)),
        "resumed": raised(lambda: resumed_apart(rank, world)),
    }


def drifted(run: Run, other: bool, start: bool = False) -> None:
    """One bit of one entry of rank 1 flips, before the task or in its first interval."""

    def flip() -> None:
        with torch.no_grad():
            bits = run.parameters[2].view(torch.int32)
            bits[0, 0] ^= int(other)

    if start:
        flip()
    with run.merger.task("later", run.memory):
        run.train(2)
        flip()
        run.train(2)


def resumed_apart(rank: int, world: int) -> None:
    """Every rank goes on from its own state, that of rank 1 is an update older."""
    run = Run(rank, world, config=FIXED)
    states = []
    with run.merger.task("later", run.memory):
        for _ in range(3):
            run.train(1)
            states.append(run.merger.state_dict())
    again = Run(rank, world, config=FIXED)
    again.merger.load_state_dict(states[-2 if rank == 1 else -1])
    with again.merger.task("later", again.memory):
        pass


def late(run: Run) -> None:
    """From now on this rank sees a record only when it waits for it."""
    mailbox = run.merger.controller.mailbox
    peek, wait_until, known = mailbox.peek, mailbox.wait_until, [mailbox.read]

    def wait(number: int) -> None:
        wait_until(number)
        known[0] = max(known[0], number)

    mailbox.peek = lambda: peek() if mailbox.read < known[0] else None  # type: ignore[method-assign]
    mailbox.wait_until = wait  # type: ignore[method-assign]


def bad_losses(rank: int, world: int, others_late: bool) -> dict[str, Any]:
    """History losses of rank 1 are NaN from update 5 on; no merge is due."""
    run = Run(rank, world, config={**FIXED, "s_init": 30, "max_bad_probes": 3})
    if others_late and rank != 1:
        late(run)
    original = run.merger.rehearsal._passes.loss_fn

    def loss_fn(model: Any, batch: Any) -> Any:
        loss = original(model, batch)
        return loss * float("nan") if rank == 1 and run.update >= 5 else loss

    run.merger.rehearsal._passes.loss_fn = loss_fn
    with run.merger.task("later", run.memory):
        told = raised(lambda: run.train(20))
        first = run.update
        told += raised(lambda: run.train(20))
        second = run.update
        run.merger.rehearsal._passes.loss_fn = original
        run.train(6)
    return {"told": told, "events": run.events(), "updates": [first, second]}


def bad_entries(
    rank: int, world: int, kind: str, value: str, half: str, on_reject: str
) -> dict[str, Any]:
    """An entry of rank 1 is not finite before the first merge, or after its last memory step."""
    config = {**FIXED, "on_reject": on_reject}
    is_late, kind = kind == "late", "ddp" if kind == "late" else kind
    run = Run(rank, world, kind=kind, config=config)
    if is_late and rank != 1:
        late(run)
    at = {"anchor": local_bits(run.parameters)}

    def spoil() -> None:
        if rank == 1 and run.update == 4:
            entries = next(p for p in locals_of(run) if p.numel())
            entries.view(-1)[0] = float(value)

    if half == "close":
        original = run.merger.close_merge

        def close_merge() -> None:
            spoil()
            original()

        run.merger.close_merge = close_merge
    with run.merger.task("later", run.memory):
        run.train(3)
        run.train_once()
        at["theta_j"] = local_bits(run.parameters)
        if half == "open":
            spoil()
        told = raised(run.merger.step)
        at["left"] = local_bits(run.parameters)
        run.train(4)
    return {"told": told, "at": at, "events": run.events(), "weights": run.weights()}


def locals_of(run: Run) -> list[torch.Tensor]:
    return [p.detach() for p in run.merger.binding.parameters.locals()]


def bad_start(rank: int, world: int, kind: str) -> dict[str, Any]:
    run = Run(rank, world, kind=kind, config=FIXED)
    if rank == 1:
        next(p for p in locals_of(run) if p.numel()).view(-1)[0] = float("nan")
    context = run.merger.task("later", run.memory)
    return {"told": raised(context.__enter__)}


def own_losses(rank: int, world: int) -> dict[str, Any]:
    """A custom loop in which every rank observes losses and numbers of rows of its own."""
    run = Run(rank, world, config={"s_init": 4, "gamma_forget": 1.02})
    draw = torch.Generator().manual_seed(rank)
    merges, means = [], []
    merger = run.merger
    with merger.task("later"):
        for update in range(40):
            run.train_once()
            loss = torch.rand((), generator=draw) + update / 40
            items = 1.0 + (rank + update) % 3
            if rank == world - 1 and update % 7 == 3:
                items, loss = 0.0, torch.tensor(float("nan"))  # no history row here
            merger.observe(loss, items)
            both = torch.tensor([0.0 if items == 0 else float(loss) * items, items]).double()
            dist.all_reduce(both)
            means.append(float(both[0] / both[1]))
            if merger.due():
                merger.open_merge()
                merger.close_merge()
                merges.append(update)
    return {
        "merges": merges,
        "means": means,
        "events": run.events(),
        "weights": run.weights(),
    }


def naming(rank: int, world: int) -> dict[str, Any]:
    """All of the above with living ranks, in one group."""
    shards = ("fsdp", "nan", "open", "raise"), ("fsdp", "inf", "close", "raise")
    replicas = (
        *(("ddp", "nan", "open", "raise"), ("ddp", "-inf", "open", "continue")),
        *(("ddp", "nan", "close", "raise"), ("ddp", "inf", "close", "continue")),
        *(("late", "nan", "open", "raise"), ("late", "nan", "close", "raise")),
    )
    entries = {" ".join(case): bad_entries(rank, world, *case) for case in (*replicas, *shards)}
    return {
        "differ": differ(rank, world),
        "losses": {name: bad_losses(rank, world, name == "late") for name in ("prompt", "late")},
        "entries": entries,
        "start": {kind: bad_start(rank, world, kind) for kind in ("ddp", "fsdp")},
        "own": own_losses(rank, world),
    }
