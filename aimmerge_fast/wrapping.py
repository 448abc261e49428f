"""What is wrapped around a model that several processes train: DDP, FSDP2, and what is refused."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from aimmerge_fast.parameters.shards import mesh_names, shard_dimensions

#: Wrappers by class name: they may not be installed. What to do instead is the value.
_REFUSED = {
    "DeepSpeedEngine": "DeepSpeed keeps parameters of its own beside the model's: use DDP or FSDP2",
    "FullyShardedDataParallel": "FSDP1 flattens parameters: use FSDP2 (fully_shard)",
    "DataParallel": "it copies the model in every forward: start processes with torchrun (DDP)",
}
#: Dimensions of a device mesh along which ranks do not train on rows of their own.
_REFUSED_MESH = {"tp", "cp", "sp", "pp", "ep"}


class Wrapped:
    """A model as the training loop runs it.

    Attributes:
        model: as given; forwards with a backward pass go through it.
        inner: without DDP; probes go through it, and parameters are named after it.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.inner = model
        modules = list(model.modules()) if isinstance(model, nn.Module) else []
        _refuse(modules)
        if isinstance(model, DistributedDataParallel):
            self.inner = model.module
        self._sharded: list[Any] = [module for module in modules if _is_fsdp2(module)]
        self._shares_buckets = getattr(model, "gradient_as_bucket_view", False)

    def require_peers(self, world: int) -> None:
        """``ValueError`` where several ranks train a model that nothing keeps equal."""
        if world > 1 and self.inner is self.model and not self._sharded:
            raise ValueError(
                f"torch.distributed has {world} ranks, but the model is neither wrapped in DDP nor "
                "sharded by FSDP2: give the wrapped model (compiled inside: "
                "DDP(torch.compile(m))), or process_group=None if you keep the ranks equal yourself"
            )

    def reshard(self) -> None:
        """Free what a forward without backward gathered, so that parameters are shards again."""
        for module in self._sharded:
            module.reshard()

    @contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        """Around a pass whose gradients are summed over ranks only if it is the ``last``."""
        if last:
            yield
            return
        if isinstance(self.model, DistributedDataParallel):
            with self.model.no_sync():
                yield
            return
        for module in self._sharded:
            module.set_requires_gradient_sync(False, recurse=False)
        try:
            yield
        finally:
            for module in self._sharded:
                module.set_requires_gradient_sync(True, recurse=False)

    def kept_gradients(self, parameters: Iterable[Tensor]) -> list[Tensor | None]:
        """The gradients of ``parameters``, which a backward pass in between leaves as they are."""
        gradients = [parameter.grad for parameter in parameters]
        if not self._shares_buckets:
            return gradients
        return [None if gradient is None else gradient.clone() for gradient in gradients]


def _refuse(modules: list[nn.Module]) -> None:
    for module in modules:
        for kind in type(module).__mro__:
            if kind.__name__ in _REFUSED:
                raise ValueError(f"{kind.__name__} is not supported: {_REFUSED[kind.__name__]}")
    parameters = [p for module in modules for p in module.parameters(False)]
    names = {name for parameter in parameters for name in mesh_names(parameter)}
    refused = sorted(names & _REFUSED_MESH)
    if any(shard_dimensions(parameter) > 1 for parameter in parameters):
        refused.append("two dimensions of shards")
    if refused:
        raise ValueError(
            f"the model is spread over a device mesh with {', '.join(refused)}: tensor, context, "
            "sequence, pipeline and expert parallelism are not supported; use DDP or FSDP2 alone"
        )


def _is_fsdp2(module: nn.Module) -> bool:
    fsdp = sys.modules.get("torch.distributed.fsdp")  # nothing is sharded before it is imported
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)
