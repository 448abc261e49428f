"""Copies of weights that others keep do not outlive a write of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft.helpers import DoraCaching
from torch import Tensor

from aimmerge_fast import AIMConfig, FastAIMMerger
from aimmerge_fast.parameters import discover
from tests.peft.kinds import KINDS, outputs
from tests.peft.training import trained_by

LAYER = "base_model.model.first"


def decode(model: Any, x: Tensor) -> Tensor:
    """As unsloth decodes a token: copies in the input's dtype, kept on the Parameters."""
    layer = model.get_submodule(LAYER)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    if not hasattr(a, "_fast_lora"):
        a._fast_lora, b._fast_lora = a.detach().to(x.dtype), b.detach().to(x.dtype)
    result: Tensor = (b._fast_lora @ (a._fast_lora @ x)) * layer.scaling["default"]
    return result


def fresh(model: Any, x: Tensor) -> Tensor:
    layer = model.get_submodule(LAYER)
    a, b = (
        holder["default"].weight.detach().to(x.dtype) for holder in (layer.lora_A, layer.lora_B)
    )
    result: Tensor = (b @ (a @ x)) * layer.scaling["default"]
    return result


def move(model: Any) -> None:
    with torch.no_grad():
        for tensor in trained_by(model):
            tensor.add_(0.1)


def opened(model: Any) -> FastAIMMerger:
    """A merger just before the merge that is due."""
    config = AIMConfig(schedule="fixed", s_init=1, s_min=1, on_reject="continue")
    return FastAIMMerger(model, config)


def close(merger: FastAIMMerger, model: Any, look: Callable[[], object]) -> None:
    merger.open_merge()
    move(model)
    look()
    merger.close_merge()


def roll_back(merger: FastAIMMerger, model: Any, look: Callable[[], object]) -> None:
    look()
    merger.rollback()


def reject(merger: FastAIMMerger, model: Any, look: Callable[[], object]) -> None:
    with torch.no_grad():
        trained_by(model)[-1].view(-1)[0] = float("nan")
    look()
    merger.open_merge()
    merger.close_merge()


@pytest.mark.parametrize("write", [close, reject, roll_back])
def test_no_decoding_with_weights_from_before_a_write(write: Any) -> None:
    model = KINDS["linear"].model()
    merger = opened(model)
    x = torch.ones(6, dtype=torch.bfloat16)
    with merger.task("task"):
        move(model)
        merger.observe(torch.tensor(1.0))
        assert merger.due()
        write(merger, model, lambda: decode(model, x))
        assert torch.equal(decode(model, x), fresh(model, x))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("write", [close, reject, roll_back])
def test_no_norms_of_dora_from_before_a_write(write: Any, frozen: bool) -> None:
    """They are kept beside the magnitudes, also where those do not train."""
    model = KINDS["dora"].model()
    for name, parameter in model.named_parameters():
        if frozen and "lora_magnitude_vector" in name:
            parameter.requires_grad_(False)
    merger = opened(model)
    with merger.task("task"), DoraCaching():
        move(model)
        merger.observe(torch.tensor(1.0))
        assert merger.due()
        write(merger, model, lambda: outputs(model))
        cached = outputs(model)
    assert torch.equal(cached, outputs(model))


def marked(model: Any) -> set[str]:
    """Where a copy is kept: the names of modules and of parameters."""
    owners = [*model.named_modules(), *model.named_parameters()]
    return {name for name, owner in owners if "_fast_lora" in vars(owner)}


@pytest.mark.parametrize("frozen", ["", "lora_A", "lora_B"])
def test_copies_of_a_pair_go_together_and_others_stay(frozen: str) -> None:
    """unsloth looks for one on A alone: a copy left on one of the two would never be renewed."""
    model = KINDS["linear"].model()
    pairs = [f"{LAYER}.lora_{x}.default" for x in "AB"]
    kept = {f"{LAYER}.base_layer", f"{LAYER}.base_layer.weight"}
    dropped = {*pairs, *(f"{pair}.weight" for pair in pairs)}
    for name, owner in [*model.named_modules(), *model.named_parameters()]:
        if name in kept | dropped:
            object.__setattr__(owner, "_fast_lora", torch.zeros(1))
        if frozen and f".{frozen}." in name and isinstance(owner, torch.nn.Parameter):
            owner.requires_grad_(False)
    assert marked(model) == kept | dropped
    parameters = discover(model)
    parameters.drop_stale_copies()
    assert marked(model) == kept
    parameters.drop_stale_copies()  # nothing there: nothing to say


def test_a_replaced_parameter_and_bare_tensors_are_followed() -> None:
    model = KINDS["linear"].model()
    parameters = discover(model)
    linear = model.get_submodule(f"{LAYER}.lora_A.default")
    linear.weight = torch.nn.Parameter(linear.weight.detach().clone())
    assert parameters.check() is False
    linear.weight._fast_lora = torch.zeros(1)
    parameters.drop_stale_copies()
    assert marked(model) == set()
    tensor = torch.nn.Parameter(torch.zeros(2))
    tensor._fast_lora = torch.zeros(2)  # type: ignore[attr-defined]
    discover([tensor]).drop_stale_copies()
    assert not hasattr(tensor, "_fast_lora")
