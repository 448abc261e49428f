"""Measure one backbone: the gate, then every arm cold and hot, then the per-step hook."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from aimmerge_fast import AIMConfig, FastAIMMerger
from overhead import gate, launches, timing
from overhead.backbones import Backbone
from overhead.ours import ALPHAS, Ours, counted_bytes
from overhead.rivals import COMPILED, RIVALS, Alphas, Arm, Importance
from overhead.timing import Call, Effort, Spread

#: The arm that times the released code's importance scores: per training step, not per merge.
IMPORTANCE = "importance"
Progress = Callable[[str], None]
Maker = Callable[[list[Tensor]], Arm]


@dataclasses.dataclass(frozen=True)
class Measured:
    """Everything that was measured on one backbone.

    ``spreads[cache][arm]`` in µs per merge (``importance``: per step), ``host_us[backend]`` in µs
    per step hook, ``merge_host_us`` in µs what a merger does around the kernels of a merge (look
    for re-allocated parameters, tell autograd), ``launches[arm]`` per merge (None: not seen),
    ``skipped[arm]`` the reason that an arm has no time; ``wall[arm]`` on a GPU, host and device.
    """

    backbone: Backbone
    tensors: int
    bytes_per_merge: int
    launches: dict[str, int | None]
    host_us: dict[str, float]
    merge_host_us: dict[str, float]
    spreads: dict[str, dict[str, Spread]]
    skipped: dict[str, str]
    wall: dict[str, Spread]


def backbone(
    what: Backbone, backends: list[str], device: torch.device, effort: Effort, progress: Progress
) -> Measured:
    """Check every arm against Eq. 7, then time them; ``GateError`` before anything is timed."""
    inputs = gate.Inputs.draw(what.shapes(), device)
    makers: dict[str, Maker] = {name: functools.partial(Ours, name) for name in backends}
    for name, rival in RIVALS.items():
        makers[name] = _weighted(rival)
    skipped: dict[str, str] = {}
    arms: dict[str, Arm] = {}
    for name, make in makers.items():
        progress(f"{what.title}: checking {name}")
        try:
            arms[name] = gate.check(name, make, inputs, ours=name in backends)
        except RuntimeError as error:  # what torch.compile raises without a working compiler
            if name != COMPILED or isinstance(error, gate.GateError):
                raise
            skipped[name] = f"torch.compile failed: {_first_line(error)}"
    progress(f"{what.title}: counting launches, timing the step hook")
    hooks = {n: host_us(n, inputs, effort.hook_calls, device) for n in backends}
    launched = {n: launches.count(_merge(arm), device, arm.unseen) for n, arm in arms.items()}
    spreads, wall = _times(what, {name: makers[name] for name in arms}, inputs, effort, progress)
    return Measured(
        what,
        len(inputs.shapes),
        counted_bytes(inputs.tensors()),
        launched,
        {name: step for name, (step, _) in hooks.items()},
        {name: merge for name, (_, merge) in hooks.items()},
        spreads,
        skipped,
        wall,
    )


def _times(
    what: Backbone,
    makers: dict[str, Maker],
    inputs: gate.Inputs,
    effort: Effort,
    progress: Progress,
) -> tuple[dict[str, dict[str, Spread]], dict[str, Spread]]:
    """Spreads by cache state; and on a GPU those of host and device together."""
    device = inputs.start.device
    # A set holds live and anchor at the least; whatever else an arm keeps makes it colder still.
    sets = effort.rotation(2 * inputs.start.numel() * inputs.start.element_size())
    progress(f"{what.title}: {sets} sets for each of {len(makers) + 1} arms")
    arms: dict[str, list[Call]] = {
        name: [_merge(make(_moved(inputs))) for _ in range(sets)] for name, make in makers.items()
    }
    arms[IMPORTANCE] = [Importance(inputs.tensors()).step for _ in range(sets)]
    progress(f"{what.title}: timing cold")
    cold = timing.cold(arms, effort, device)
    progress(f"{what.title}: timing hot")
    hot = timing.hot({name: arms[name][0] for name in makers}, effort, device)
    wall: dict[str, Spread] = {}
    if device.type == "cuda":
        progress(f"{what.title}: timing host and device together")
        wall = timing.wall({name: arms[name] for name in makers}, effort, device)
    return {"cold": cold, "hot": hot}, wall


def _weighted(rival: Callable[[Sequence[Tensor], Alphas], Arm]) -> Maker:
    return lambda live: rival(live, ALPHAS)


def _moved(inputs: gate.Inputs) -> list[Tensor]:
    """Live tensors of a set. Its first merge makes live equal to anchor; no arm's time depends on
    the values, and moving them between two samples would warm the cache."""
    return [tensor + 1e-3 for tensor in inputs.tensors()]


def _merge(arm: Arm) -> Call:
    return timing.Halves(arm.open_, arm.close_, arm)


def host_us(
    backend: str, values: gate.Values, calls: int, device: torch.device
) -> tuple[float, float]:
    """µs of a merger's step without its probe (observe, read the record, apply the run-ahead rule,
    log the event), and of its work around the kernels of a merge."""
    far = 1 << 20  # an interval that does not end here
    merger = FastAIMMerger(
        [torch.nn.Parameter(tensor) for tensor in values.tensors()],
        AIMConfig(s_init=far, s_max=far),
        backend=backend,
    )
    loss = torch.tensor(0.3, device=device)

    def step() -> None:
        merger.observe(loss)
        merger.due()

    def around() -> None:
        for _ in range(2):  # open and close
            merger.binding.heal()
            merger.binding.bump_versions()

    with merger.task("hook"):
        step_us = timing.per_call(step, calls, device)
        return step_us, timing.per_call(around, calls // 20, device)


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
