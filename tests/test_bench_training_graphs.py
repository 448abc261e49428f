"""bench/training/graphs.py: what is captured, and that an arm trains the same through it."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import training_overhead
from training import arms, blocks, check, phases
from training.graphs import Graphed

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
CPU = torch.device("cpu")


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.Size, ...]]:
    """Shapes of what a stand-in for torch's capture was given; it runs the module as it is."""
    seen: list[tuple[torch.Size, ...]] = []

    def capture(module: nn.Module, samples: tuple[Tensor, ...]) -> nn.Module:
        assert torch.is_grad_enabled()
        assert module.training
        seen.append(tuple(tensor.shape for tensor in samples))
        return module

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", capture)
    return seen


def small(name: str, device: torch.device) -> arms.Setup:
    one_interval = dataclasses.replace(check._SMALL, steps=check._SMALL.interval)
    return arms.set_up_small(name, one_interval, device)


def through_graphs(setup: arms.Setup) -> arms.Setup:
    """The same model, bank and start, its passes captured."""
    setup.reset()
    return arms.Setup(setup.name, Graphed(setup.model), setup.bank, setup.settings)


@pytest.mark.parametrize("kind", phases.PHASED)
@pytest.mark.parametrize("name", ["llama2-7b", "t5-large"])
def test_an_arm_ends_in_the_same_bits(
    name: str, kind: type[arms.Arm], captured: list[tuple[torch.Size, ...]]
) -> None:
    setup = small(name, CPU)
    blocks.untimed(kind, setup)
    expected = setup.theta()
    graphed = through_graphs(setup)
    blocks.untimed(kind, graphed)
    assert graphed.theta() == expected
    assert not graphed.model.state_dict().keys() ^ {f"model.{k}" for k in setup.model.state_dict()}
    rows = sorted(shapes[0][0] for shapes in captured)
    assert len(set(captured)) == len(captured)  # each shape once
    # matched: 1.5 + 2.5 rows beside 4; aim: batches of 3 history and of 5 memory rows
    assert rows == {"plain": [4], "matched": [4, 8], "aim": [3, 4, 5]}[kind.name]


def test_graphs_need_a_gpu() -> None:
    options = training_overhead._parser().parse_args(["--graphs"])
    with pytest.raises(ValueError, match="--graphs: CUDA graphs need a GPU, not cpu; leave it out"):
        training_overhead.settings_of("t5-large", options, CPU)


def test_the_option_reaches_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    of: Callable[..., Any] = training_overhead.settings_of
    options: argparse.Namespace = training_overhead._parser().parse_args(["--graphs"])
    assert of("t5-large", options, torch.device("cuda")).graphs is True
    options = training_overhead._parser().parse_args([])
    assert of("t5-large", options, torch.device("cuda")).graphs is False
