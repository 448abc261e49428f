"""What ``Parameters.check`` refuses by name: changes that the anchor could not follow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from torch import nn

from aimmerge_fast.parameters import discover
from tests.peft_models import NAMES, PATHS, TARGETS, clone_data, lora_a, two_layers

Change = Callable[[Any], object]


def resize(model: Any) -> None:
    lora_a(model).default.weight.data = torch.zeros(3, 6)


def reorder(model: Any) -> None:
    weight = lora_a(model).default.weight
    weight.data = weight.data.t().contiguous().t()


def gap(model: Any) -> None:
    lora_a(model).default.weight.data = torch.zeros(2, 12)[:, ::2]


def overlap(model: Any) -> None:
    memory = torch.zeros(27)
    lora_a(model).default.weight.data = memory[:12].view(2, 6)
    model.get_parameter(PATHS[3]).data = memory[11:].view(8, 2)


def other_adapter(model: Any) -> None:
    model.add_adapter("other", peft.LoraConfig(r=2, target_modules=TARGETS))
    model.set_adapter("other")


def merge(model: Any) -> None:
    model.merge_adapter()
    clone_data(model)


REFUSED: dict[str, tuple[Change, str]] = {
    "bfloat16": (lambda m: m.to(torch.bfloat16), f"{NAMES[0]}.*dtype from float32 to bfloat16"),
    "float64": (lambda m: m.double(), f"{NAMES[0]}.*dtype from float32 to float64"),
    "meta": (lambda m: m.to("meta"), f"{NAMES[0]}.*device from cpu to meta"),
    "shape": (resize, rf"{NAMES[2]}.*shape from \(2, 6\) to \(3, 6\)"),
    "memory order": (reorder, rf"{NAMES[2]}.*strides \(6, 1\) became \(1, 2\)"),
    "gaps": (gap, f"{NAMES[2]}' is gapped"),
    "overlap": (overlap, f"{NAMES[2]}' and '{NAMES[3]}' overlap"),
    "frozen": (lambda m: lora_a(m).requires_grad_(False), f"{NAMES[2]}' is gone or no longer"),
    "another adapter": (other_adapter, f"{NAMES[0]}' is gone or no longer"),
    "deleted": (lambda m: m.delete_adapter("default"), f"{NAMES[0]}' is gone or no longer"),
    "merged": (merge, "adapter 'default' is merged"),
    "no parameter": (
        lambda m: setattr(lora_a(m).default, "weight", None),
        f"{NAMES[2]}' is gone from its module",
    ),
}


@pytest.mark.filterwarnings("ignore:Adapter default was active")
@pytest.mark.parametrize("case", REFUSED)
def test_refusal_names_the_parameter_and_changes_nothing(case: str) -> None:
    change, text = REFUSED[case]
    model = two_layers()
    found = discover(model)
    signature, devices = found.signature(), found.devices()
    change(model)
    for _ in range(2):  # it is not taken for the new normal the second time
        with pytest.raises(RuntimeError, match=text):
            found.check()
    assert (found.names, found.signature(), found.devices()) == (NAMES, signature, devices)


class Tied(nn.Module):
    """Two Parameters over one memory, transposed, as PEFT ties the adapters of tied embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.arange(6.0).view(2, 3))
        self.two = nn.Parameter(self.one.detach().t())


def test_ties_are_kept_or_named() -> None:
    model = Tied()
    found = discover(model)
    assert found.names == ("one",)
    model.one.data = model.one.data.clone()
    with pytest.raises(RuntimeError, match="'two' no longer shares the memory of 'one'"):
        found.check()
    model.two.data = model.one.data.t()
    assert found.check() is False
    assert found.check() is True
    model.two.data = model.two.data.clone()  # this time only the one that is not counted
    with pytest.raises(RuntimeError, match="'two' no longer shares the memory of 'one'"):
        found.check()
    model.two.data = model.one.data.t()
    assert found.check() is True
    model.to(torch.float64).to(torch.float32)  # moves each by itself
    with pytest.raises(RuntimeError, match="'two' no longer shares the memory of 'one'"):
        found.check()


def test_a_new_tie_is_named() -> None:
    tensors = [("a", torch.zeros(2, requires_grad=True)), ("b", torch.ones(2, requires_grad=True))]
    found = discover(tensors)
    tensors[1][1].data = tensors[0][1].data
    with pytest.raises(RuntimeError, match="'b' shares the memory of 'a'"):
        found.check()


def test_same_address_with_another_dtype_is_noticed() -> None:
    memory = torch.zeros(4)
    parameter = nn.Parameter(memory)
    found = discover([("w", parameter)])
    parameter.data = memory.view(torch.bfloat16)[:4]
    with pytest.raises(RuntimeError, match="'w' changed its dtype from float32 to bfloat16"):
        found.check()
    parameter.data = memory.view(2, 2)
    with pytest.raises(RuntimeError, match=r"'w' changed its shape from \(4,\) to \(2, 2\)"):
        found.check()
    parameter.data = memory
    assert found.check() is True


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_devices_in_the_order_met_and_a_move_is_named() -> None:
    model = nn.Sequential(nn.Linear(2, 2).cuda(), nn.Linear(2, 2))
    found = discover(model)
    assert found.devices() == [torch.device("cuda", 0), torch.device("cpu")]
    model.cuda()
    with pytest.raises(RuntimeError, match=r"'1\.weight' changed its device from cpu to cuda:0"):
        found.check()
