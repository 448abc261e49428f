"""Runs of ranks that stop and go on in new objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aimmerge_fast.durable.tree import load_tree, save_tree
from tests.checkpoints import require_equal
from tests.distributed.failing import raised
from tests.distributed.runs import Run, local_bits

STEPS = 22
AFTER = (1, 7, 12, 19)  # updates after which it is saved
SETTINGS: dict[str, Any] = {
    "dropout": 0.2,
    "noise": 0.05,
    "config": {"s_init": 5, "gamma_forget": 1.02},
}


def new(rank: int, world: int, kind: str) -> Run:
    return Run(rank, world, kind=kind, **SETTINGS)


def save(run: Run) -> dict[str, Any]:
    """What a training script saves on this rank; shards as plain tensors."""
    return {
        "model": local_bits(run.parameters),
        "optimizer": [_moments(run.optimizer.state[p]) for p in run.parameters],
        "merger": run.merger.state_dict(),
        "update": run.update,
        "random": torch.get_rng_state(),
    }


def load(run: Run, saved: dict[str, Any]) -> None:
    with torch.no_grad():
        for parameter, content, moments in zip(
            run.parameters, saved["model"], saved["optimizer"], strict=True
        ):
            _local(parameter).copy_(content)
            run.optimizer.state[parameter] = _restored(parameter, moments)
    run.update = saved["update"]
    torch.set_rng_state(saved["random"])
    run.merger.load_state_dict(saved["merger"])


def resume(rank: int, world: int, kinds: list[str], folder: str) -> dict[str, Any]:
    """For each kind: whether every resumed run ends as the whole one does, bit for bit."""
    return {kind: resume_kind(rank, world, kind, Path(folder)) for kind in kinds}


def resume_kind(rank: int, world: int, kind: str, folder: Path) -> dict[str, Any]:
    whole = new(rank, world, kind)
    saved: dict[str, dict[str, Any]] = {}
    counts: dict[str, int] = {}

    def keep(name: str) -> None:
        path = folder / f"{kind} {name} {rank}.safetensors"
        save_tree(path, save(whole))
        saved[name], counts[name] = load_tree(path), len(whole.merger.events)

    def keep_inside(*_: Any) -> None:
        if whole.merger.controller.is_open and len(saved) < 6:
            keep(f"inside {whole.update} {whole.merger.position.steps_made}")

    whole.optimizer.register_step_post_hook(keep_inside)
    with whole.merger.task("later", whole.memory):
        for _ in range(STEPS):
            whole.train(1)
            if whole.update in AFTER:
                keep(f"after {whole.update}")
    end = save(whole)
    for name, state in saved.items():
        again = new(rank, world, kind)
        load(again, state)
        with again.merger.task("later", again.memory):
            again.train(STEPS - again.update)
        require_equal(save(again), end, f"{kind}, {name}")
        assert again.events() == whole.events()[counts[name] :], name
    merges = [event["step"] for event in whole.events() if event["event"] == "open"]
    return {"points": list(saved), "merges": merges, "state": saved["after 7"]["merger"]}


def refuse(rank: int, world: int) -> dict[str, Any]:
    """What loading the state of another rank, or of another number of ranks, says."""
    run = new(rank, world, "ddp")
    state = run.merger.state_dict()
    changes = {"rank": {"rank": 1 - rank}, "world": {"world": 3}}
    return {
        what: raised(lambda change=change: run.merger.load_state_dict(state | change))
        for what, change in changes.items()
    }


def _local(tensor: Tensor) -> Tensor:
    local = getattr(tensor, "to_local", None)
    return local() if local is not None else tensor


def _moments(state: dict[str, Any]) -> dict[str, Tensor]:
    return {name: _local(value).detach().clone() for name, value in state.items()}


def _restored(parameter: nn.Parameter, moments: dict[str, Tensor]) -> dict[str, Tensor]:
    restored = {}
    for name, value in moments.items():
        if name == "step":
            restored[name] = value.clone()
            continue
        restored[name] = torch.zeros_like(parameter)
        _local(restored[name]).copy_(value)
    return restored
