"""What ``Parameters.check`` heals after a re-allocation, and what it refuses by name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from aimmerge_fast.parameters import Parameters, discover

Change = Callable[[Any], object]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 6)
        self.first = nn.Linear(6, 8)

    def forward(self, ids: Tensor) -> Tensor:
        output: Tensor = self.first(self.words(ids))
        return output


TARGETS = ["words", "first"]
LAYER = "base_model.model."
NAMES = (
    LAYER + "words.lora_embedding_A",
    LAYER + "words.lora_embedding_B",
    LAYER + "first.lora_A.weight",
    LAYER + "first.lora_B.weight",
)
PATHS = (
    LAYER + "words.lora_embedding_A.default",
    LAYER + "words.lora_embedding_B.default",
    LAYER + "first.lora_A.default.weight",
    LAYER + "first.lora_B.default.weight",
)


def adapted(seed: int = 0) -> peft.PeftModel:
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=2, target_modules=TARGETS, init_lora_weights=False)
    model = peft.get_peft_model(Net(), config)
    assert isinstance(model, peft.PeftModel)
    return model


def lora_a(model: nn.Module) -> Any:
    return model.get_submodule(LAYER + "first.lora_A")


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
    model.load_state_dict(adapted(seed=1).state_dict())


@pytest.mark.parametrize("change", [train, load_values])
def test_values_may_change_in_place(change: Change) -> None:
    model = adapted()
    found = discover(model)
    addresses, before = found.addresses(), entries(model)
    change(model)
    assert found.check() is True
    assert found.addresses() == addresses
    assert all(a != b for a, b in zip(entries(model), before, strict=True))
    require_current(found, model)


# --- healed -----------------------------------------------------------------------------------


def clone_data(model: Any) -> None:
    weight = lora_a(model).default.weight
    weight.data = weight.data.clone()


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
    model.load_state_dict(adapted(seed=1).state_dict(), assign=True)


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
    model = adapted()
    found = discover(model)
    before = found.addresses()
    change(model)
    assert found.check() is False
    assert found.addresses() != before
    require_current(found, model)
    assert found.check() is True


def test_compiling_a_part_is_healed() -> None:
    model: Any = adapted()
    found = discover(model)
    tensors = found.tensors()
    compiled = torch.compile(model.base_model.model.first, backend="eager")
    model.base_model.model.first = compiled
    assert found.check() is False
    assert found.names == NAMES
    assert all(a is b for a, b in zip(found.tensors(), tensors, strict=True))
    assert found.check() is True


def test_extra_trainable_parameters_are_left_alone() -> None:
    model: Any = adapted()
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


# --- adapters loaded from disk ----------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> tuple[str, list[list[float]]]:
    other = adapted(seed=1)
    other.save_pretrained(str(tmp_path))
    return str(tmp_path), entries(other)


def test_loading_over_an_adapter(saved: tuple[str, list[list[float]]]) -> None:
    path, expected = saved
    model = adapted()
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
    model = adapted().to(torch.bfloat16)
    found = discover(model)
    model.load_adapter(saved[0], "default", is_trainable=True)  # new fp32 Parameters
    assert model.get_parameter(PATHS[0]).dtype == torch.float32
    with pytest.raises(RuntimeError, match=f"{NAMES[0]}.*dtype from bfloat16 to float32"):
        found.check()


def test_state_of_a_renamed_adapter_has_the_same_names(
    saved: tuple[str, list[list[float]]],
) -> None:
    model = peft.PeftModel.from_pretrained(Net(), saved[0], "renamed", is_trainable=True)
    assert discover(model).signature() == discover(adapted()).signature()


# --- refused by name --------------------------------------------------------------------------


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


def tie(model: Any) -> None:
    model.get_parameter(PATHS[2]).data = model.get_parameter(PATHS[1]).data.t()


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
    model = adapted()
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
    with pytest.raises(RuntimeError, match="'1.weight' changed its device from cpu to cuda:0"):
        found.check()
