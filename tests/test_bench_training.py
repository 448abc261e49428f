"""The arms of bench/training_overhead.py: same architectures, same batches, same theta."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from overhead.backbones import BACKBONES
from overhead.gate import GateError
from tests.driving import released as reference
from training import arms, check, models
from training import released as theirs
from training.arms import Arm, Setup

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
CPU = torch.device("cpu")
#: Parameters of the published models, without an adapter.
SIZES = {
    "t5-large": 737_668_096,
    "qwen3-1.7b": 1_720_574_976,
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
}


@pytest.fixture(scope="module")
def small() -> Setup:
    return arms.set_up_small("llama2-7b", check._SMALL, CPU)


@pytest.mark.parametrize("name", BACKBONES)
def test_models_have_the_published_sizes(name: str) -> None:
    import transformers

    kind: Any = transformers.AutoModelForCausalLM
    if models.is_seq2seq(name):
        kind = transformers.AutoModelForSeq2SeqLM
    with torch.device("meta"):
        model = kind.from_config(models.config(name))
    assert sum(p.numel() for p in model.parameters()) == SIZES[name]


@pytest.mark.parametrize("name", BACKBONES)
def test_fewer_layers_keep_the_widths(name: str) -> None:
    model = models.build(name, 2, torch.bfloat16, torch.device("meta"), 0)
    trained = [p for p in model.parameters() if p.requires_grad]
    blocks_of_attention = 3 * 2 if models.is_seq2seq(name) else 2
    assert [tuple(p.shape) for p in trained] == BACKBONES[name].shapes()[: 4 * blocks_of_attention]
    assert {p.dtype for p in trained} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}


# ---- the arms against FastAIMMerger --------------------------------------------------------------


@pytest.mark.parametrize("name", ["t5-large", "qwen3-1.7b", "llama2-7b"])
def test_released_arm_computes_our_theta(name: str) -> None:
    setup = arms.set_up_small(name, check._SMALL, CPU)
    start = setup.theta()
    rival, mine = check.released(setup, theirs.Released), check.ours_as_released(setup)
    check.compare(setup, rival, mine, "released")
    assert rival.used.merges == check._STEPS // check._SMALL.interval == 3
    assert rival.used.memory_steps == mine.used.memory_steps == 6
    assert setup.theta() != start


def never_merge(self: theirs.Released) -> None:
    self._signal.merged()


def lean_weights(self: theirs.Signal) -> tuple[float, float]:
    return 0.5, 0.5


def first_rows(self: theirs.Released, loader: Any) -> dict[str, Tensor]:
    return self.setup.bank.batch(self.setup.memory_row_numbers[: loader.batch_size])


@pytest.mark.parametrize(
    ("owner", "attribute", "wrong", "error"),
    [
        (theirs.Released, "_merge", never_merge, "memory_rows 0, FastAIMMerger 30"),
        (theirs.Signal, "alphas", lean_weights, r"\d+ of \d+ entries differ"),
        (theirs.Merge, "close_", lambda self: None, r"\d+ of \d+ entries differ"),
        (theirs.Released, "_fresh", first_rows, r"\d+ of \d+ entries differ"),
    ],
)
def test_check_sees_a_wrong_released_arm(
    small: Setup,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    attribute: str,
    wrong: Any,
    error: str,
) -> None:
    monkeypatch.setattr(owner, attribute, wrong)
    with pytest.raises(GateError, match=error):
        check.compare(
            small, check.released(small, theirs.Released), check.ours_as_released(small), "x"
        )


def test_check_sees_another_clipping(small: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "CLIP", 0.01)  # ours, in the memory steps
    monkeypatch.setattr(arms, "CLIP", 0.01)
    rival = check.released(small, theirs.Released)
    check.compare(small, rival, check.ours_as_released(small), "released")
    monkeypatch.setattr(check, "CLIP", 0.02)
    rival = check.released(small, theirs.Released)
    with pytest.raises(GateError, match="entries differ"):
        check.compare(small, rival, check.ours_as_released(small), "released")


def test_check_sees_other_batches(small: Setup) -> None:
    class Later(Arm):
        def step(self, number: int) -> None:
            super().step(number + 1)

    with pytest.raises(GateError, match="trained on other rows"):
        check.compare(small, Later(small), check.monitoring(small), "plain")


def test_released_signal_is_the_reference_controller() -> None:
    for seed in range(20):
        chance = random.Random(seed)
        S = chance.randint(2, 20)
        signal, controller = theirs.Signal(S), reference(s_init=S, adaptive=False)
        for _ in range(200):
            loss = chance.choice([0.5, 1.0, 1.0, 1.0, 2.0, 4.0])
            merges = controller.observe(loss).startswith("merge_")
            assert signal.judge(loss) == merges
            if merges:
                merge = controller.merge(1.0)
                assert signal.alphas() == (merge["alpha1"], merge["alpha2"])
                signal.merged()
