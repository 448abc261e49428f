"""What ``Parameters.check`` lets pass, and what it heals after a re-allocation."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn

from aimmerge_fast.parameters import Parameters, discover
from tests.peft_models import LAYER, NAMES, PATHS, Net, clone_data, lora_a, two_layers

Change = Callable[[Any], object]


def entries(model: nn.Module) -> list[list[float]]:
    return [model.get_parameter(path).detach().flatten().tolist() for path in PATHS]


def require_current(found: Parameters, model: nn.Module) -> None:
    current = [model.get_parameter(path) for path in PATHS]
    assert found.names == NAMES
    assert all(a is b for a, b in zip(found.tensors(), current, strict=True))
    assert found.addresses() == tuple(p.data_ptr() for p in current)
    assert [flat.tolist() for flat in found.flat()] == entries(model)


# --- still in place ---------------------------------------------------------------------------


def train(model: Any) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        model(torch.tensor([1, 4])).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def load_values(model: Any) -> None:
    model.load_state_dict(two_layers(seed=1).state_dict())


@pytest.mark.parametrize("change", [train, load_values])
def test_values_may_change_in_place(change: Change) -> None:
    model = two_layers()
    found = discover(model)
    addresses, before = found.addresses(), entries(model)
    change(model)
    assert found.check() is True
    assert found.addresses() == addresses
    assert all(a != b for a, b in zip(entries(model), before, strict=True))
    require_current(found, model)


# --- healed -----------------------------------------------------------------------------------


def new_parameter(model: Any) -> None:
    lora_a(model).default.weight = nn.Parameter(torch.full((2, 6), 3.0))


def new_dict_entry(model: Any) -> None:
    model.get_submodule(LAYER + "words").lora_embedding_A["default"] = nn.Parameter(
        torch.full((2, 11), 3.0)
    )


def new_module(model: Any) -> None:
    lora_a(model)["default"] = nn.Linear(6, 2, bias=False)


def new_module_dict(model: Any) -> None:
    model.get_submodule(LAYER + "first").lora_A = copy.deepcopy(lora_a(model))


def new_layer(model: Any) -> None:
    model.base_model.model.first = copy.deepcopy(model.base_model.model.first)


def round_trip(model: Any) -> None:
    kept = [p.data for p in model.parameters()]  # or the allocator hands the same addresses out
    model.to(torch.float64).to(torch.float32)
    del kept


def assign(model: Any) -> None:
    model.load_state_dict(two_layers(seed=1).state_dict(), assign=True)


HEALED = (
    clone_data,
    new_parameter,
    new_dict_entry,
    new_module,
    new_module_dict,
    new_layer,
    round_trip,
    assign,
)


@pytest.mark.parametrize("change", HEALED)
def test_reallocation_is_healed(change: Change) -> None:
    model = two_layers()
    found = discover(model)
    before = found.addresses()
    change(model)
    assert found.check() is False
    assert found.addresses() != before
    require_current(found, model)
    assert found.check() is True


def test_compiling_a_part_is_healed() -> None:
    model: Any = two_layers()
    found = discover(model)
    tensors = found.tensors()
    compiled = torch.compile(model.base_model.model.first, backend="eager")
    model.base_model.model.first = compiled
    assert found.check() is False
    assert found.names == NAMES
    assert all(a is b for a, b in zip(found.tensors(), tensors, strict=True))
    assert found.check() is True


def test_extra_trainable_parameters_are_left_alone() -> None:
    model: Any = two_layers()
    found = discover(model)
    model.base_model.model.first.base_layer.bias.requires_grad_(True)
    clone_data(model)
    assert found.check() is False
    require_current(found, model)


def test_a_listed_tensor_is_followed_by_its_data() -> None:
    tensors = [torch.zeros(3, requires_grad=True), torch.zeros(2, 2, requires_grad=True)]
    found = discover(tensors)
    assert found.check() is True
    tensors[1].data = torch.full((2, 2), 7.0)
    assert found.check() is False
    assert [flat.tolist() for flat in found.flat()] == [[0.0] * 3, [7.0] * 4]
    assert found.check() is True


def test_the_stride_of_a_dimension_of_one_is_no_layout() -> None:
    tensor = torch.zeros(6).as_strided((1, 6), (99, 1)).requires_grad_()
    found = discover([tensor])
    tensor.data = torch.ones(1, 6)
    assert found.check() is False
    assert found.flat()[0].tolist() == [1.0] * 6


# --- adapters loaded from disk ----------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> tuple[str, list[list[float]]]:
    other = two_layers(seed=1)
    other.save_pretrained(str(tmp_path))
    return str(tmp_path), entries(other)


def test_loading_over_an_adapter(saved: tuple[str, list[list[float]]]) -> None:
    path, expected = saved
    model = two_layers()
    found = discover(model)
    model.load_adapter(path, "default", is_trainable=True)  # copies in place
    assert found.check() is True
    assert [flat.tolist() for flat in found.flat()] == expected
    with torch.no_grad():
        for tensor in found.tensors():
            tensor.zero_()
    model.load_adapter(path, "default", is_trainable=True, low_cpu_mem_usage=True)  # assigns
    assert found.check() is False
    assert [flat.tolist() for flat in found.flat()] == expected
    require_current(found, model)


def test_loading_over_a_bf16_adapter_is_named(saved: tuple[str, list[list[float]]]) -> None:
    model = two_layers().to(torch.bfloat16)
    found = discover(model)
    model.load_adapter(saved[0], "default", is_trainable=True)  # new fp32 Parameters
    assert model.get_parameter(PATHS[0]).dtype == torch.float32
    with pytest.raises(RuntimeError, match=f"{NAMES[0]}.*dtype from bfloat16 to float32"):
        found.check()


def test_state_of_a_renamed_adapter_has_the_same_names(
    saved: tuple[str, list[list[float]]],
) -> None:
    model = peft.PeftModel.from_pretrained(Net(), saved[0], "renamed", is_trainable=True)
    assert discover(model).signature() == discover(two_layers()).signature()
