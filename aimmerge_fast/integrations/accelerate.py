"""AIMMerging in a loop that Accelerate drives: several processes, mixed precision, accumulation.

::

    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    merger = AccelerateMerger(accelerator, model, AIMConfig(), optimizer=optimizer, collate=collate)
    with merger.task("agnews", memory=memory):
        for batch in loader:
            with accelerator.accumulate(model):
                accelerator.backward(model(**batch).loss)
                optimizer.step()
                optimizer.zero_grad()
            merger.step()                       # counts the updates among the micro-batches itself
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType

from aimmerge_fast.config import AIMConfig
from aimmerge_fast.durable.files import Broken, rename
from aimmerge_fast.durable.manifest import read_part, seal, verify, write_part
from aimmerge_fast.integrations.ranks import as_one, main_does
from aimmerge_fast.merger import FastAIMMerger

_SUPPORTED = ("NO", "MULTI_CPU", "MULTI_GPU", "FSDP")
_ENDS = tuple(f".{count}" for count in range(2, 1000))


class AccelerateMerger(FastAIMMerger):
    """``FastAIMMerger`` for what ``accelerator.prepare`` returned.

    Args:
        accelerator: of the loop.
        model: prepared; memory steps run as it is wrapped.
        config: the method's settings.
        optimizer: prepared. The merger steps what is inside, with the accelerator's scaler.
        keywords: as of ``FastAIMMerger``.

    Raises: ValueError for DeepSpeed, Megatron-LM, TPUs, FSDP1 or an optimizer that was not
        prepared, and what ``FastAIMMerger`` raises.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: Any,
        config: AIMConfig | None = None,
        *,
        optimizer: AcceleratedOptimizer,
        **keywords: Any,
    ) -> None:
        kind = DistributedType(accelerator.distributed_type).value
        if kind not in _SUPPORTED:
            raise ValueError(
                f"Accelerate runs {kind}, which is not supported; supported are "
                f"{', '.join(_SUPPORTED)} (FSDP: version 2)"
            )
        if not isinstance(optimizer, AcceleratedOptimizer):
            raise ValueError(
                f"optimizer is a {type(optimizer).__name__}; give what accelerator.prepare() "
                "returned for it"
            )
        self._accelerator = accelerator
        inside = {"optimizer": optimizer.optimizer, "scaler": accelerator.scaler}
        super().__init__(model, config, **inside, **keywords)

    def step(
        self, history_loss: torch.Tensor | None = None, items: torch.Tensor | float = 1.0
    ) -> bool:
        """Call after each micro-batch; one after which no update was made does not count."""
        return bool(self._accelerator.sync_gradients) and super().step(history_loss, items)

    def save(self, folder: str | Path, position: Mapping[str, Any] | None = None) -> None:
        """``accelerator.save_state`` and this merger in a new folder, sealed; on every rank.

        The folder appears when everything in it is on the disk. ``position`` (JSON-able): where the
        loop is in its data, which ``load`` gives back; a shuffled loader skips to the same batches
        if it was prepared with ``DataLoaderConfiguration(use_seedable_sampler=True)``.

        Raises: ValueError when there is a complete state at ``folder``; a broken one is renamed to
            ``_broken-<name>``. OSError naming the file; on the other ranks RuntimeError.
        """
        target, accelerator = Path(folder), self._accelerator
        aside = target.with_name(f".{target.name}.part")
        tree = {"merger": self.state_dict(), "position": dict(position or {})}
        where, is_main = accelerator.device, accelerator.is_main_process
        main_does(where, is_main, lambda: _make_way(target, aside))
        as_one(where, lambda: accelerator.save_state(str(aside)))
        as_one(where, lambda: write_part(aside, self._part(), tree))
        main_does(where, is_main, lambda: self._seal(aside, target))

    def load(self, folder: str | Path) -> dict[str, Any]:
        """Put back what ``save`` wrote, before entering the task; returns ``position``.

        Raises: Broken, naming the file, unless all is as it was saved; ValueError for another
            number of ranks, config or model. Nothing has changed then. After that the merger is
            loaded, and whatever ``accelerator.load_state`` raises.
        """
        source = Path(folder)
        verify(source)
        saved = read_part(source, self._part())
        self.load_state_dict(saved["merger"])  # refuses before anything is changed
        self._accelerator.load_state(str(source))
        position: dict[str, Any] = saved["position"]
        return position

    def _part(self) -> str:
        return f"rank{self.processes.rank}"

    def _seal(self, aside: Path, target: Path) -> None:
        seal(aside, {"world": self.processes.world})
        rename(aside, target)


def _make_way(target: Path, aside: Path) -> None:
    """Remove what a process left that died in its save, and set a broken state aside."""
    if aside.exists():
        shutil.rmtree(aside)
    if not target.exists():
        return
    try:
        verify(target)
    except Broken:
        taken = (target.with_name(f"_broken-{target.name}{end}") for end in ("", *_ENDS))
        rename(target, next(path for path in taken if not path.exists()))
        return
    raise ValueError(f"{target} exists; save every state to a new folder")
