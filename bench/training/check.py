"""Nothing is timed before this agreed: the merge on this adapter, the arms on a small model."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from aimmerge_fast import AIMConfig, kernels
from overhead import gate, rivals
from overhead.gate import GateError
from overhead.ours import ALPHAS
from overhead.ours import Ours as OurMerge
from training import arms
from training.arms import Arm, Setup, Used
from training.ours import Ours
from training.released import Drawn, Released, ReleasedLean
from training.settings import CLIP, Settings

#: Three merges of the released arm: at an interval of 2 * S, S = 2.
_STEPS = 12
_SMALL = Settings(
    layers=2,
    batch=4,
    seq=8,
    history_rows=3,
    memory_rows=5,
    past_tasks=1,
    steps=_STEPS,
    s_init=2,
    repeats=1,
    dtype="float32",
    probe="after",
)
#: Bits on a CPU; a GPU's library may choose another kernel for a second call.
_TOLERANCE = {"cpu": 0.0, "cuda": 1e-5}


def run(setup: Setup) -> list[str]:
    """Check what is about to be timed; returns what was checked, in words.

    Raises: GateError naming the arm and the first entry that differs.
    """
    backend = kernels.choose("auto", setup.device).name
    inputs = gate.Inputs.draw([_shape(p) for p in setup.parameters], setup.device)
    gate.check(backend, lambda live: OurMerge(backend, live), inputs, ours=True)
    gate.check("released", lambda live: rivals.Released(live, ALPHAS), inputs, ours=False)
    small = arms.set_up_small(setup.name, _SMALL, setup.device)
    compare(small, released(small, Released), ours_as_released(small), "AIM as released")
    compare(small, released(small, ReleasedLean), ours_as_released(small), "AIM without dead work")
    compare(small, Arm(small), monitoring(small), "plain LoRA")
    return [
        f"one merge on this adapter gives the bits of Eq. 7 ({backend}, released)",
        f"{_STEPS} updates of a small model of the family: AIM as released, with and without dead "
        "work, ends where FastAIMMerger with policy 'released' does, plain LoRA where 'monitor' is",
    ]


def compare(setup: Setup, rival: Arm, ours: Ours, name: str) -> None:
    """Train both on ``setup`` from the same start; ``GateError`` when they end elsewhere."""
    ends = [_trained(setup, arm) for arm in (rival, ours)]
    if rival.used.task_rows != ours.used.task_rows:
        raise GateError(f"{name}: trained on other rows than FastAIMMerger")
    for what in ("history_rows", "memory_rows", "merges"):
        counts = [getattr(arm.used, what) for arm in (rival, ours)]
        if counts[0] != counts[1] and ours.merger.config.schedule != "monitor":
            raise GateError(f"{name}: {what} {counts[0]}, FastAIMMerger {counts[1]}")
    allowed = _TOLERANCE[setup.device.type]
    wrong = ~((ends[0] - ends[1]).abs() <= allowed * ends[1].abs().clamp(min=1e-2))
    if wrong.any():
        at = int(wrong.nonzero()[0])
        raise GateError(
            f"{name}: {int(wrong.sum())} of {wrong.numel()} entries differ from FastAIMMerger's "
            f"after {_STEPS} updates; entry {at}: {ends[0][at].item()!r}, {ends[1][at].item()!r}"
        )


def released(setup: Setup, kind: type[Released]) -> Released:
    """The released arm, its loaders ordered as the streams of policy ``released`` draw."""
    settings, rows = setup.settings, setup.memory_row_numbers
    sizes = {"probe": settings.history_rows, "memory": settings.memory_rows}
    samplers = [Drawn(_drawn(setup, name, size), len(rows)) for name, size in sizes.items()]
    return kind(setup, samplers)


def ours_as_released(setup: Setup) -> Ours:
    """FastAIMMerger under policy ``released``, its interval held."""
    settings = setup.settings
    config = AIMConfig(
        policy="released",
        s_init=settings.s_init,
        adaptive=False,
        history_batch=settings.history_rows,
        memory_batch=settings.memory_rows,
        max_grad_norm=CLIP,
        seed=settings.seed,
    )
    return Ours(setup, config)


def monitoring(setup: Setup) -> Ours:
    """FastAIMMerger that only watches: trains to the bits of plain LoRA."""
    return Ours(setup, AIMConfig(schedule="monitor", history_batch=2))


def _drawn(setup: Setup, stream: str, size: int) -> Iterator[list[int]]:
    # the merger's second task is the one with a memory: its streams are salted with 1
    records = setup.memory.stream(stream, fresh=True, salt=1)
    index = {row: at for at, row in enumerate(setup.memory_row_numbers)}
    while True:
        yield [index[record["row"]] for record in records.draw(size)]


def _trained(setup: Setup, arm: Arm) -> Tensor:
    setup.reset()
    arm.warm_up()
    with arm.task():
        arm.used = Used()
        for number in range(_STEPS):
            arm.step(number)
    return torch.cat([p.detach().reshape(-1).clone() for p in setup.parameters])


def _shape(parameter: Tensor) -> tuple[int, int]:
    rows, columns = parameter.shape
    return rows, columns
