"""The ops in ``torch.library``, so that they can stand inside ``torch.compile``.

A schema names every tensor that its op may write, the live tensors one by one. Behind a handle or a
table of addresses their change would be invisible: a compiler would go on using what it read before
(``opcheck`` does not notice). A compiler may hand over other tensors than the caller's and copy
them back later, so an op works on the tensors that it is given and on nothing else.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from aimmerge_fast.kernels.checks import check_advance, check_half, check_observe
from aimmerge_fast.kernels.registry import choose, load

NAMESPACE = "aimmerge_fast"
#: What is written only on a reject is written all the same.
SCHEMAS = {
    "observe_": "(Tensor loss, Tensor(a!) state, *, str backend='auto') -> ()",
    "open_": "(Tensor(a!)[] live, Tensor anchor, Tensor(b!) mid, Tensor(c!) state, *, "
    "str backend='auto') -> ()",
    "close_": "(Tensor(a!)[] live, Tensor(b!) anchor, Tensor mid, Tensor(c!) state, *, "
    "str backend='auto') -> ()",
    "advance_": "(Tensor partials, Tensor(a!) state, *, str backend='auto') -> ()",
    "repair_": "(Tensor(a!)[] live, Tensor(b!) anchor, Tensor(c!) mid, Tensor state, *, "
    "str backend='auto') -> ()",
}
_CHECKS = {"observe_": check_observe, "advance_": check_advance}


@functools.cache
def _module(backend: str, device: torch.device) -> ModuleType:
    return load(choose(backend, device).name)


def _register(name: str, schema: str, check: Callable[..., None]) -> None:
    """Define ``aimmerge_fast::name``; it runs the function ``name`` of a backend's module."""
    # A table is uploaded when its addresses are first seen, which a graph's capture cannot hold:
    # compilers leave the ops out of CUDA graphs. Who captures by hand calls each op once before.
    _library.define(name + schema, tags=torch.Tag.cudagraph_unsafe)
    op = getattr(torch.ops.aimmerge_fast, name).default
    written = [index for index, each in enumerate(op._schema.arguments) if each.is_write]

    def run(*tensors: Any, backend: str = "auto") -> None:
        check(*tensors)
        getattr(_module(backend, tensors[-1].device), name)(*tensors)

    def fake(*tensors: Any, backend: str = "auto") -> None:
        check(*tensors)

    def bump(keys: Any, *tensors: Any, backend: str = "auto") -> None:
        # Kernels write past autograd. It is told here, above what traces for a compiler, so that a
        # compiler too refuses a backward pass through weights that were overwritten since.
        # enable_grad: under no_grad, inductor (torch 2.13) goes on to take a written parameter for
        # a buffer of its own, and its backward pass leaves the gradient in it.
        with torch.enable_grad(), torch._C._AutoDispatchBelowADInplaceOrView():
            below = keys & torch._C._after_ADInplaceOrView_keyset
            op.redispatch(below, *tensors, backend=backend)
        for index in written:
            torch.autograd.graph.increment_version(tensors[index])

    _library.impl(name, run, "CompositeExplicitAutograd")
    _library.impl(name, bump, "ADInplaceOrView", with_keyset=True)
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)


# A second import finds the ops of the first: torch holds these functions, and they this module.
if not hasattr(torch.ops.aimmerge_fast, list(SCHEMAS)[-1]):
    _library = torch.library.Library(NAMESPACE, "FRAGMENT")
    for _name, _schema in SCHEMAS.items():
        _register(_name, _schema, _CHECKS.get(_name, check_half))

observe_ = torch.ops.aimmerge_fast.observe_.default
open_ = torch.ops.aimmerge_fast.open_.default
close_ = torch.ops.aimmerge_fast.close_.default
advance_ = torch.ops.aimmerge_fast.advance_.default
repair_ = torch.ops.aimmerge_fast.repair_.default
