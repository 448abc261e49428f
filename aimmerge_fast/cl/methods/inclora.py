"""IncLoRA (algorithm.md B.2): a new adapter for every task, on top of the earlier ones."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from aimmerge_fast.cl.methods.base import Method, Stage
from aimmerge_fast.cl.training import seed_everything


class IncLoRA(Method):
    """h = W0 x + s sum_i B_i A_i x: task t trains (A_t, B_t), the earlier pairs are frozen.

    Folding a finished pair into W0 would be the same function for less work, but W0 is shared by
    the arms of a run.
    """

    label = "IncLoRA"
    summary = "a new adapter for every task, earlier ones frozen"

    def begin_stage(self, stage: Stage, index: int) -> None:
        self._extend(index + 1)

    def state_dict(self) -> dict[str, Any]:
        return {"adapters": len(self._names())}

    def prepare(self, state: Mapping[str, Any]) -> None:
        self._extend(state["adapters"])

    def _names(self) -> list[str]:
        return list(self.trainee.model.peft_config)

    def _extend(self, count: int) -> None:
        """Add adapters until there are ``count``; the last one alone is trained."""
        trainee, model = self.trainee, self.trainee.model
        first, *later = self._names()
        if 1 + len(later) >= count:
            return
        for number in range(2 + len(later), count + 1):
            seed_everything(f"{trainee.seed}/adapter/{number}")
            model.add_adapter(f"task{number}", copy.deepcopy(model.peft_config[first]))
        model.base_model.set_adapter(self._names())  # all of them act
        for path, parameter in model.named_parameters():
            parameter.requires_grad_(f"task{count}" in path.split("."))
        model.to(trainee.device)
        trainee.use_parameters(trainee.parameters())
