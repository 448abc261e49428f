"""A model's parameters bound to an engine: tables, arenas, states, and their healing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from aimmerge_fast import kernels
from aimmerge_fast.config import AIMConfig
from aimmerge_fast.distributed import Processes
from aimmerge_fast.parameters import discover
from aimmerge_fast.parameters.shards import is_first_replica, is_sharded
from aimmerge_fast.wrapping import Wrapped


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
        wrapped: Wrapped,
        config: AIMConfig,
        adapters: str | Sequence[str] | None,
        backend: str,
        optimizer: torch.optim.Optimizer | None,
        processes: Processes,
    ) -> None:
        self._wrapped, self._processes = wrapped, processes
        wrapped.reshard()
        self.parameters = discover(wrapped.inner, adapters)
        self._optimizer = optimizer
        self._stale = False
        self._require_optimized()
        self.sharded = self._settle_shards(config)
        devices = self.parameters.devices()
        self.choice = kernels.choose(backend, devices[0])
        tables = self.tables()
        # Zeroed, so that a saved state holds no bytes of chance.
        self.anchors = [kernels.new_arena(table).zero_() for table in tables]
        self.mids = [kernels.new_arena(table).zero_() for table in tables]
        several = len(tables) > 1 or not processes.alone
        self.states = [kernels.new_state(config, defer=several, device=d) for d in devices]
        self.backends = [kernels.choose(backend, device).name for device in devices]
        self._engines = [
            kernels.engine(*bound)
            for bound in zip(
                self.backends, tables, self.anchors, self.mids, self.states, strict=True
            )
        ]
        exchange = None if processes.alone else processes.partials
        self.engine: kernels.Engine = (
            kernels.Group(self._engines, self.states, exchange) if several else self._engines[0]
        )

    def heal(self) -> None:
        """Bind the tables anew if a parameter was re-allocated since the last call.

        Raises:
            RuntimeError: naming a parameter that cannot be bound, or that the optimizer lacks.
        """
        self._wrapped.reshard()  # an evaluation may have left parameters gathered
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

    def restore_mid(self) -> None:
        """live, anchor <- mid: the snapshot of an open merge."""
        for anchor, mid, table in zip(self.anchors, self.mids, self.tables(), strict=True):
            kernels.copy_out(table, mid)
            anchor.copy_(mid)
        self.bump_versions()

    def require_equal_ranks(self) -> None:
        """``PeerError`` naming a rank whose replica of the parameters is not that of rank 0."""
        if self._processes.alone or self.sharded:
            return
        digest = hashlib.sha256()
        for tensor in self.parameters.flat():
            digest.update(tensor.cpu().view(torch.uint8).numpy().tobytes())
        self._processes.require_equal("other trainable parameters", digest.digest())

    def require_finite(self) -> None:
        """``ValueError`` naming the first parameter with a non-finite entry, on all ranks alike."""
        named = zip(self.parameters.names, self.parameters.flat(), strict=True)
        bad = next((name for name, tensor in named if not torch.isfinite(tensor).all()), None)
        ranks = self._processes.where(bad is not None)
        if not ranks:
            return
        found = "a parameter" if bad is None else f"parameter {bad!r}"
        if not self._processes.alone:
            found += f" of rank {', '.join(map(str, ranks))}"
        raise ValueError(f"{found} holds non-finite entries; a task must start from finite weights")

    def bump_versions(self) -> None:
        """Tell autograd that the parameters changed, past its version counters, and drop copies."""
        torch.autograd.graph.increment_version(self.parameters.locals())
        self.parameters.drop_stale_copies()

    def tables(self) -> list[list[torch.Tensor]]:
        """Flat views of the parameters, one list per device."""
        flat = self.parameters.flat()
        return [[t for t in flat if t.device == device] for device in self.parameters.devices()]

    def _settle_shards(self, config: AIMConfig) -> bool:
        """Whether ranks hold shards; tells the peers whose count."""
        tensors = self.parameters.tensors()
        sharded = [is_sharded(tensor) for tensor in tensors]
        if any(sharded) and not all(sharded):
            name = self.parameters.names[sharded.index(False)]
            raise ValueError(
                f"parameter {name!r} is whole on every rank where others are sharded: let FSDP2 "
                "shard all that trains, or none of it"
            )
        if not any(sharded):
            first = self._processes.rank == 0
        elif self._processes.alone:
            raise ValueError(
                "the parameters are sharded over ranks that this merger does not know: leave "
                "process_group='auto'"
            )
        else:
            first = is_first_replica(tensors[0])
        if any(sharded) and config.memory_optimizer != "shared":
            raise ValueError(
                f"memory_optimizer={config.memory_optimizer!r} copies moments, which is not "
                "supported for sharded ones (FSDP2): use 'shared'"
            )
        self._processes.share_layout(replicated=not any(sharded), owner=first)
        return any(sharded)

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
