"""What a merger refuses when it is made: models, settings, backends, optimisers, files."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from aimmerge_fast import AIMConfig, FastAIMMerger
from aimmerge_fast.kernels import registry
from tests.checkpoints import require_equal
from tests.loops import Loop, collate, net
from tests.peft_models import adapted


def frozen() -> Any:
    model = adapted()
    model.requires_grad_(False)
    return model


def merged() -> Any:
    model = adapted()
    model.merge_adapter()
    return model


MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "nothing trainable": (lambda: net().requires_grad_(False), "no trainable parameters.*requires"),
    "no parameters": (lambda: [], "no trainable parameters"),
    "meta": (lambda: nn.Linear(2, 2, device="meta"), "'weight' is on the meta device"),
    "frozen adapter": (frozen, "adapter.*'default'.*frozen|no trainable"),
    "merged adapter": (merged, "adapter 'default' is merged"),
    "fp64": (lambda: nn.Linear(2, 2).double(), "'weight'.*float64"),
    "a tensor": (lambda: torch.ones(3, requires_grad=True), "got a Tensor; pass a torch.nn.Module"),
    "a name": (lambda: "gpt2", "got a str; pass a torch.nn.Module"),
    "None": (lambda: None, "got a NoneType; pass a torch.nn.Module"),
}


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str) -> None:
    make, message = MODELS[name]
    model = make()
    content = copy.deepcopy(model.state_dict()) if isinstance(model, nn.Module) else None
    with pytest.raises((ValueError, TypeError), match=message):
        FastAIMMerger(model)
    if content is not None and name != "meta":
        require_equal(dict(model.state_dict()), dict(content))


def test_an_unknown_adapter_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"'french'.*default"):
        FastAIMMerger(adapted(), adapters="french")


def test_configurations() -> None:
    with pytest.raises(ValueError, match=r"s_init=0 must be an integer in \[1, "):
        Loop(s_init=0)
    with pytest.raises(ValueError, match="policy='best' is unknown; choose one of paper, released"):
        Loop(policy="best")
    for wrong in ({"s_init": 4}, "paper", 3):
        with pytest.raises(TypeError, match=f"must be an AIMConfig, got {type(wrong).__name__}"):
            FastAIMMerger(net(), wrong)  # type: ignore[arg-type]


def test_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="unknown backend 'cuda'; choose one of auto, native, tri"):
        FastAIMMerger(net(), backend="cuda")
    monkeypatch.setattr(registry, "_why_not_native", lambda device: "no compiler was found")
    with pytest.raises(RuntimeError, match="'native' cannot work on cpu: no compiler was found"):
        FastAIMMerger(net(), backend="native")
    fallen_back = FastAIMMerger(net()).binding.choice
    assert fallen_back.name == "eager"
    assert "no compiler was found" in fallen_back.reason


def test_an_optimizer_without_the_parameters() -> None:
    model = net()
    for held in (net().parameters(), [model[0].weight, model[0].bias, model[3].weight]):
        optimizer = torch.optim.SGD(held, lr=0.1)
        with pytest.raises(ValueError, match=r"the optimizer does not hold parameter '[03]\.\w+'"):
            FastAIMMerger(model, optimizer=optimizer, collate=collate)


class Fussy(torch.optim.SGD):
    """An optimiser that cannot be built from parameter groups alone."""

    def __init__(self, params: Any, lr: float, model: nn.Module) -> None:
        super().__init__(params, lr=lr)


def test_an_optimizer_that_has_no_twin() -> None:
    model = net()
    config = AIMConfig(memory_optimizer="separate")
    with pytest.raises(
        ValueError, match=r"cannot build a second Fussy .*use 'snapshot' or 'shared'"
    ):
        FastAIMMerger(
            model, config, optimizer=Fussy(model.parameters(), 0.1, model), collate=collate
        )


def test_an_events_file_that_cannot_be_written(tmp_path: Path) -> None:
    paths = [tmp_path / "missing" / "events.jsonl", tmp_path]
    if os.geteuid() != 0:  # root may write anywhere
        locked = tmp_path / "locked"
        locked.mkdir(mode=0o500)
        paths.append(locked / "events.jsonl")
    for path in paths:
        with pytest.raises(OSError, match=r"cannot write events to .*; give a path in a folder"):
            FastAIMMerger(net(), events=path)
