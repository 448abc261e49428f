"""Calls of every registered op over dtypes, shapes, mixtures and outcomes, ready for ``opcheck``.

A case is built anew for every use: ops change what they are given.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import torch

from aimmerge_fast import kernels
from aimmerge_fast.config import AIMConfig
from aimmerge_fast.kernels.layout import IDLE, MERGE_OPEN
from aimmerge_fast.kernels.states import edit_state
from tests.tables import DTYPES, Play, Spec, Table, bits_of

#: What each op writes in some case; a test compares schemas and version counters with it.
WRITES = {
    "observe_": {"state"},
    "open_": {"live", "mid", "state"},
    "close_": {"live", "anchor", "state"},
    "advance_": {"state"},
    "repair_": {"live", "anchor", "mid"},
}
HALVES = ("open_", "close_", "repair_")
SIZES = (0, 1, 4097)
MIXED = (Spec(torch.float32, 7), Spec(torch.bfloat16, 0), Spec(torch.float16, 4097, 3))
TABLES = {
    **{
        f"{str(dtype).removeprefix('torch.')}[{n}]": (Spec(dtype, n),)
        for dtype, n in itertools.product(DTYPES, SIZES)
    },
    "mixed": MIXED,
    "none": (),
    "misaligned": tuple(Spec(dtype, 4097, 1) for dtype in DTYPES),
}
OUTCOMES = ("paper", "released", "reject", "monitor", "defer")
_CONFIGS = {
    "released": AIMConfig(policy="released", alpha_new=0.25),
    "monitor": AIMConfig(schedule="monitor"),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One call; ``table`` names the live tensors, or the loss or partial results instead."""

    op: str
    table: str
    outcome: str = "paper"

    def __str__(self) -> str:
        return f"{self.op}-{self.table}-{self.outcome}"

    def build(self, device: str = "cpu") -> dict[str, Any]:
        """The op's arguments by name."""
        if self.op == "observe_":
            loss = LOSSES[self.table].to(device)
            return {"loss": loss, "state": _state(self.outcome, IDLE, device)}
        if self.op == "advance_":
            rows = PARTIALS[self.table].to(device)
            phase = IDLE if self.outcome == "paper" else MERGE_OPEN
            return {"partials": rows, "state": _state(self.outcome, phase, device)}
        return _half(self.op, self.table, self.outcome, device)


LOSSES = {
    **{
        f"{str(dtype).removeprefix('torch.')}{list(shape)}": torch.full(shape, 1.5, dtype=dtype)
        for dtype, shape in itertools.product((*DTYPES, torch.float64), ((), (1,)))
    },
    "nan": torch.tensor(float("nan")),
}
PARTIALS = {
    "no rows": torch.zeros(0, 2, dtype=torch.float64),
    "one row": torch.tensor([[3.0, 0.0]], dtype=torch.float64),
    "three rows": torch.tensor([[3.0, 0.0], [0.5, 0.0], [0.25, 0.0]], dtype=torch.float64),
    "columns": torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64).t(),
    "bad row": torch.tensor([[3.0, 0.0], [0.5, 2.0]], dtype=torch.float64),
}
CASES = (
    *(Case("observe_", loss, way) for loss, way in itertools.product(LOSSES, OUTCOMES[:2])),
    *(Case("advance_", rows, way) for rows, way in itertools.product(PARTIALS, OUTCOMES[:2])),
    *(Case(op, table) for op, table in itertools.product(HALVES, TABLES)),
    *(Case("repair_", table, "released") for table in TABLES),
    *(Case(op, "mixed", way) for op, way in itertools.product(HALVES, OUTCOMES[2:])),
)


def _state(outcome: str, phase: int, device: str, **fields: int) -> torch.Tensor:
    """A controller in the middle of an interval, or of a merge."""
    config = _CONFIGS.get(outcome, AIMConfig(alpha_new=0.25))
    state = kernels.new_state(config, defer=outcome == "defer", device=device)
    values = {"t": 5, "g": 5, "phase": phase, "alpha1": 0.75, "alpha2": 0.25, **fields}
    with edit_state(state) as shared:
        for name, value in values.items():
            shared["state"][name] = value
    return state


def _half(op: str, name: str, outcome: str, device: str) -> dict[str, Any]:
    specs, stage = TABLES[name], 1 if op == "open_" else 2
    table = Table.build(specs, AIMConfig(), device=device)
    bad = {stage: [(0, 3, 0x7FC00000)]} if outcome == "reject" and op != "repair_" else {}
    play = Play(specs, "normal", 1, bad=bad)
    play.fill(table, 0)
    kernels.copy_into(table.anchor, table.live)
    play.fill(table, 1)
    if op != "open_":
        kernels.copy_into(table.mid, table.live)
        play.fill(table, 2)
    # repair_ follows a rejected open in these outcomes, a rejected close in the others
    after_open = op == "repair_" and outcome != "released"
    phase = MERGE_OPEN if op == "close_" or after_open else IDLE
    state = _state(outcome, phase, device, reject=op == "repair_")
    return {"live": table.live, "anchor": table.anchor, "mid": table.mid, "state": state}


def overload(op: str) -> Any:
    return getattr(torch.ops.aimmerge_fast, op).default


def opcheck(case: Case, backend: str, device: str = "cpu") -> None:
    """``AssertionError`` or ``OpCheckError`` unless all four of its checks pass."""
    arguments = tuple(case.build(device).values())
    results = torch.library.opcheck(overload(case.op), arguments, {"backend": backend})
    assert set(results.values()) == {"SUCCESS"}, results
    assert len(results) == 4


def changed(case: Case, backend: str, device: str = "cpu") -> set[str]:
    """The arguments whose bytes the op changes."""
    arguments = case.build(device)
    before = {name: _bytes(value) for name, value in arguments.items()}
    overload(case.op)(*arguments.values(), backend=backend)
    return {name for name, value in arguments.items() if _bytes(value) != before[name]}


def _bytes(value: torch.Tensor | list[torch.Tensor]) -> list[bytes]:
    tensors = [value] if isinstance(value, torch.Tensor) else value
    return [bits_of(tensor.reshape(-1)) for tensor in tensors]
