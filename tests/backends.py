"""The controller of a kernel backend, behind the same two calls as the reference controllers."""

from __future__ import annotations

import math
from typing import Any

import torch

from aimmerge_fast import kernels
from aimmerge_fast.config import AIMConfig
from aimmerge_fast.events import CODES

USABLE = [name for name, reason in kernels.available().items() if reason is None]


class BackendController:
    """Drives ``observe_`` and ``advance_`` on a state tensor; parameters play no part.

    ``ops``: what takes the place of ``aimmerge_fast.kernels``.
    """

    def __init__(
        self,
        config: AIMConfig,
        backend: str,
        *,
        task: int = 0,
        ops: Any = kernels,
        device: torch.device | str = "cpu",
    ) -> None:
        self._backend, self._released = backend, config.policy == "released"
        self._monitors = config.schedule == "monitor"
        self._ops = ops
        self._state = kernels.new_state(config, task=task, device=device)

    @property
    def _fields(self) -> Any:
        return kernels.read_state(self._state)["state"]

    def _tensor(self, values: Any) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64, device=self._state.device)

    def observe(self, loss: float) -> str:
        self._ops.observe_(self._tensor(loss), self._state, backend=self._backend)
        f = self._fields
        self.t, self.S, self.F = int(f["t"]), int(f["S"]), int(f["F"])
        self.threshold = float(f["threshold"]) if f["has_threshold"] else None
        return CODES[f["code"]]

    def merge(self, delta_l1: float) -> dict[str, Any]:
        return self._advance(delta_l1, 0)

    def reject(self) -> dict[str, Any]:
        return self._advance(1.0, 1)

    def _advance(self, l1: float, bad: int) -> dict[str, Any]:
        f = self._fields
        S, F, t = int(f["S"]), int(f["F"]), int(f["t"])
        kind = CODES[f["code"]]
        M = int(f["memory_steps"]) if self._released else max(1, t // 2)
        for row in ([l1, bad], [0.0, 0.0]):  # open, then close
            self._ops.advance_(self._tensor([row]), self._state, backend=self._backend)
        f = self._fields
        merge = {
            "step": int(f["g"]),
            "S": S,
            "S_actual": t,
            "F": F,
            "delta_l1": l1,
            "lambda": float(f["lambda"]),
            "cold": bool(f["cold"]),
            "alpha1": float(f["alpha1"]),
            "alpha2": float(f["alpha2"]),
            "memory_steps": 0 if self._monitors else M,
            "next_S": int(f["S"]),
            "kind": kind if kind.startswith("merge_") or kind == "measure" else "merge_final",
        }
        if self._released:
            factor = float(f["change_factor"])
            merge["change_factor"] = None if math.isnan(factor) else factor
            merge["next_memory_steps"] = int(f["memory_steps"])
        else:
            merge |= {"L_up": int(f["L_up"]), "L_down": int(f["L_down"]), "case": int(f["case_"])}
        return merge
