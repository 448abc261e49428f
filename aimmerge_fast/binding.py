"""A model's parameters bound to an engine: tables, arenas, states, and their healing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from aimmerge_fast import kernels
from aimmerge_fast.config import AIMConfig
from aimmerge_fast.parameters import discover


class Binding:
    """Finds the trainable parameters and binds one engine per device to them.

    Attributes:
        parameters: what was found. choice: the first device's backend and why.
        backends: one name per device.
        engine: one engine, or a ``Group`` over several devices.
        anchors, mids: one arena per device. states: one state tensor per device.
    """

    def __init__(
        self,
        model: Any,
        config: AIMConfig,
        adapters: str | Sequence[str] | None,
        backend: str,
        optimizer: torch.optim.Optimizer | None,
    ) -> None:
        self.parameters = discover(model, adapters)
        self._optimizer = optimizer
        self._stale = False
        self._require_optimized()
        devices = self.parameters.devices()
        self.choice = kernels.choose(backend, devices[0])
        tables = self.tables()
        # Zeroed, so that a saved state holds no bytes of chance.
        self.anchors = [kernels.new_arena(table).zero_() for table in tables]
        self.mids = [kernels.new_arena(table).zero_() for table in tables]
        several = len(tables) > 1
        self.states = [kernels.new_state(config, defer=several, device=d) for d in devices]
        self.backends = [kernels.choose(backend, device).name for device in devices]
        self._engines = [
            kernels.engine(*bound)
            for bound in zip(
                self.backends, tables, self.anchors, self.mids, self.states, strict=True
            )
        ]
        self.engine: kernels.Engine = (
            kernels.Group(self._engines, self.states) if several else self._engines[0]
        )

    def heal(self) -> None:
        """Bind the tables anew if a parameter was re-allocated since the last call.

        Raises:
            RuntimeError: naming a parameter that cannot be bound, or that the optimizer lacks.
        """
        if not self.parameters.check():
            self._stale = True  # until every engine knows, even if a caller catches an error below
        if not self._stale:
            return
        self._require_optimized()
        for engine, table in zip(self._engines, self.tables(), strict=True):
            engine.rebind(table)
        self._stale = False

    def set_anchor(self) -> None:
        """anchor <- live: the start of a task."""
        for anchor, table in zip(self.anchors, self.tables(), strict=True):
            kernels.copy_into(anchor, table)

    def restore_anchor(self) -> None:
        """live <- anchor."""
        for anchor, table in zip(self.anchors, self.tables(), strict=True):
            kernels.copy_out(table, anchor)
        self.bump_versions()

    def require_finite(self) -> None:
        """``ValueError`` naming the first parameter with a non-finite entry."""
        for name, tensor in zip(self.parameters.names, self.parameters.flat(), strict=True):
            if not bool(torch.isfinite(tensor).all()):
                raise ValueError(
                    f"parameter {name!r} holds non-finite entries; a task must start from finite "
                    "weights"
                )

    def bump_versions(self) -> None:
        """Tell autograd that the parameters changed: our writes go past its version counters."""
        torch.autograd.graph.increment_version(self.parameters.tensors())

    def tables(self) -> list[list[torch.Tensor]]:
        """Flat views of the parameters, one list per device."""
        flat = self.parameters.flat()
        return [[t for t in flat if t.device == device] for device in self.parameters.devices()]

    def _require_optimized(self) -> None:
        if self._optimizer is None:
            return
        held = {id(p) for group in self._optimizer.param_groups for p in group["params"]}
        for name, tensor in zip(self.parameters.names, self.parameters.tensors(), strict=True):
            if id(tensor) not in held:
                raise ValueError(
                    f"the optimizer does not hold parameter {name!r}; build it over the parameters "
                    "that train (and again after a load that replaced them)"
                )
