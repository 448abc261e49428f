"""What discovery refuses, naming the parameter or the adapter and what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from aimmerge_fast.parameters import discover
from tests.peft_models import Net, adapted, two_adapters


def merged() -> peft.PeftModel:
    model = adapted()
    model.merge_adapter()
    return model


def inference() -> peft.PeftModel:
    return adapted(inference_mode=True)


def one(tensor: Tensor) -> list[tuple[str, Tensor]]:
    return [("w", tensor)]


def overlapping() -> list[tuple[str, Tensor]]:
    base = torch.zeros(10)
    return [("a", base[:6].requires_grad_()), ("b", base[5:].requires_grad_())]


class Wrapped(Tensor):
    """A subclass that answers for a tensor it does not hold, as DTensor does."""

    @staticmethod
    def __new__(cls) -> Wrapped:
        return Tensor._make_wrapper_subclass(cls, (2,), requires_grad=True)  # type: ignore

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError(func)


ERRORS: dict[str, tuple[Callable[[], Any], Any, str]] = {
    "frozen model": (lambda: Net().requires_grad_(False), None, "no trainable parameters"),
    "empty list": (list, None, "no trainable parameters: none of the 0 given"),
    "frozen list": (lambda: [torch.zeros(2)], None, "none of the 1 given requires a gradient"),
    "unknown adapter": (two_adapters, "x", "unknown adapter 'x'.*'default', 'other'"),
    "no such adapter among": (two_adapters, ["default", "x"], "unknown adapter 'x'"),
    "adapter of a plain model": (Net, "default", "unknown adapter 'default'; the model has: none"),
    "no adapter": (two_adapters, [], r"adapters=\[\] names no adapter"),
    "adapters of a wrong type": (two_adapters, 3, "adapters=3 names no adapter"),
    "adapters of a list": (lambda: [torch.zeros(2)], "default", "needs the model"),
    "inactive adapter": (two_adapters, "other", r"'other' is frozen.*set_adapter\('other'\)"),
    "one of two inactive": (two_adapters, ["default", "other"], "'other' is frozen"),
    "inference": (inference, None, "'default' is frozen.*is_trainable=True"),
    "disabled": (lambda: (m := adapted()).base_model.disable_adapter_layers() or m, None, "frozen"),
    "merged": (merged, None, r"'default' is merged.*unmerge_adapter\(\)"),
    "meta": (lambda: Net().to("meta"), None, "'words.weight' is on the meta device"),
    "float64": (
        lambda: Net().double(),
        None,
        "'words.weight' has dtype float64; allowed.*bfloat16",
    ),
    "complex": (
        lambda: one(torch.zeros(2, dtype=torch.complex64, requires_grad=True)),
        None,
        "'w' has dtype complex64; allowed",
    ),
    "sparse": (
        lambda: one(torch.eye(2).to_sparse().requires_grad_()),
        None,
        "'w' has layout torch.sparse_coo",
    ),
    "subclass": (lambda: one(Wrapped()), None, "'w' is a .*Wrapped, which has no plain memory"),
    "lazy": (lambda: nn.LazyLinear(2), None, "'weight' is a .*UninitializedParameter"),
    "result": (lambda: one(torch.zeros(2, requires_grad=True) * 2), None, "'w' is the result of"),
    "expanded": (
        lambda: one(torch.zeros(1, 3).expand(4, 3).requires_grad_()),
        None,
        r"'w' is expanded \(shape \(4, 3\), strides \(0, 1\)\)",
    ),
    "gapped": (lambda: one(torch.zeros(4, 4)[:, :2].requires_grad_()), None, "'w' is gapped"),
    "overlapping itself": (
        lambda: one(torch.zeros(9).as_strided((3, 4), (2, 1)).requires_grad_()),
        None,
        "'w' is overlapping",
    ),
    "overlapping": (overlapping, None, "parameters 'a' and 'b' overlap in memory"),
    "misaligned": (
        lambda: one(torch.frombuffer(bytearray(9), dtype=torch.float32, offset=1).requires_grad_()),
        None,
        "'w' starts at an address that is no multiple of 4",
    ),
    "same name": (
        lambda: [("w", torch.zeros(2, requires_grad=True)) for _ in range(2)],
        None,
        "two parameters are named 'w'",
    ),
    "single tensor": (lambda: torch.zeros(2), None, "got a Tensor; pass a torch.nn.Module, or"),
    "text": (lambda: "model", None, "got a str; pass"),
    "nothing": (lambda: None, None, "got a NoneType; pass"),
    "groups": (
        lambda: torch.optim.SGD(Net().parameters()).param_groups,
        None,
        "item 0 is a dict.*group",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_refusal_names_what_is_wrong(case: str) -> None:
    make, adapters, text = ERRORS[case]
    with pytest.raises(ValueError, match=text):
        discover(make(), adapters)


def test_of_a_dtensor_the_shard_is_bound_and_a_summand_is_refused(tmp_path: Any) -> None:
    distributed = pytest.importorskip("torch.distributed")
    if not distributed.is_available():
        pytest.skip("torch without distributed")
    from torch.distributed.tensor import DTensor, Partial, distribute_tensor

    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        shard = nn.Parameter(distribute_tensor(torch.zeros(4), mesh))
        found = discover(one(shard))
        found.flat()[0].fill_(3.0)
        assert shard.full_tensor().tolist() == [3.0] * 4
        summand = nn.Parameter(DTensor.from_local(torch.zeros(4), mesh, [Partial()]))
        with pytest.raises(ValueError, match=r"'w' is a DTensor.*summand"):
            discover(one(summand))
    finally:
        distributed.destroy_process_group()
