"""The arms of bench/merge_overhead.py: shapes, rivals, the gate, how they are timed."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from overhead import gate, launches, measure, ours, rivals, tables, timing
from overhead.backbones import BACKBONES

CPU = torch.device("cpu")
ODD = [(8, 5), (1, 1), (3, 1367), (8, 1024), (2, 4099)]


def config(name: str) -> Any:
    """The transformers config of a backbone, from its published values."""
    import transformers

    if name == "t5-large":
        return transformers.T5Config(
            d_model=1024, d_kv=64, d_ff=4096, num_layers=24, num_decoder_layers=24, num_heads=16
        )
    if name == "qwen3-1.7b":
        return transformers.Qwen3Config(
            hidden_size=2048,
            intermediate_size=6144,
            num_hidden_layers=28,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=128,
        )
    width, inner, layers, heads = {
        "llama2-7b": (4096, 11008, 32, 32),
        "llama2-13b": (5120, 13824, 40, 40),
    }[name]
    return transformers.LlamaConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
    )


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", BACKBONES)
def test_shapes_are_those_that_peft_trains(name: str) -> None:
    import peft
    import transformers

    of_config = config(name)
    t5 = name == "t5-large"
    kind = transformers.AutoModelForSeq2SeqLM if t5 else transformers.AutoModelForCausalLM
    targets = ["q", "v"] if t5 else ["q_proj", "v_proj"]
    with torch.device("meta"):
        model = kind.from_config(of_config)
        model = peft.get_peft_model(model, peft.LoraConfig(r=8, target_modules=targets))
    trained = [tuple(p.shape) for p in model.parameters() if p.requires_grad]
    assert BACKBONES[name].shapes() == trained


def test_sizes_are_those_of_the_paper() -> None:
    sizes = {name: (b.entries(), len(b.shapes())) for name, b in BACKBONES.items()}
    assert sizes == {
        "t5-large": (2_359_296, 288),
        "qwen3-1.7b": (1_605_632, 112),
        "llama2-7b": (4_194_304, 128),
        "llama2-13b": (6_553_600, 160),
    }


@pytest.mark.parametrize("name", ["released", "foreach"])
def test_rivals_give_our_bits(name: str) -> None:
    inputs = gate.Inputs.draw(ODD, CPU)
    assert rivals.RIVALS[name].tolerance == 0.0  # type: ignore[attr-defined]
    rival = gate.check(name, measure._weighted(rivals.RIVALS[name]), inputs, ours=False)
    mine = gate.check("eager", lambda live: ours.Ours("eager", live), inputs, ours=True)
    for left, right in zip(rival.live, mine.live, strict=True):
        assert torch.equal(left, right)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_compiled_rival_gives_our_theta() -> None:
    inputs = gate.Inputs.draw(ODD, CPU)
    make = measure._weighted(rivals.Compiled)
    try:
        gate.check("compiled", make, inputs, ours=False)
    except RuntimeError as error:
        if "InvalidCxxCompiler" not in str(error):
            raise
        pytest.skip("torch.compile finds no C++ compiler here")


def test_gate_sees_a_fused_rounding() -> None:
    class Fused(rivals.Foreach):
        def close_(self) -> None:
            alpha_new, alpha_past = self._alphas
            past = torch._foreach_sub(self.live, self._mid)
            torch._foreach_add_(self._anchor, self._new, alpha=alpha_new)
            torch._foreach_add_(self._anchor, past, alpha=alpha_past)
            torch._foreach_copy_(self.live, self._anchor)

    with pytest.raises(gate.GateError, match=r"fused: live: \d+ of 20532 entries differ"):
        gate.check("fused", measure._weighted(Fused), gate.Inputs.draw(ODD, CPU), ours=False)


def test_gate_sees_a_wrong_l1() -> None:
    class Half(rivals.Released):
        def change(self) -> float:
            return super().change() / 2

    with pytest.raises(gate.GateError, match="L1 is"):
        gate.check("half", measure._weighted(Half), gate.Inputs.draw(ODD, CPU), ours=False)


def test_released_arm_launches_thirteen_kernels_per_tensor() -> None:
    arm = rivals.Released([torch.randn(3, 5) for _ in range(7)], ours.ALPHAS)
    # and one that starts the sum, one that reads it
    assert launches.count(measure._merge(arm), CPU) + arm.unseen == 13 * 7 + 2


def test_importance_scores_are_two_moving_averages() -> None:
    live = [torch.full((4,), 2.0)]
    scores = rivals.Importance(live)
    scores.step()
    scores.step()
    first = 0.15 * 4e-3
    second = 0.85 * first + 0.15 * 4e-3
    spread = 0.85 * 0.15 * (4e-3 - first) + 0.15 * (4e-3 - second)
    assert torch.allclose(scores._mean[0], torch.full((4,), second))
    assert torch.allclose(scores._spread[0], torch.full((4,), spread))


def test_cold_rotates_and_hot_repeats() -> None:
    calls: list[str] = []
    arms = {a: [lambda n=f"{a}{i}": calls.append(n) for i in range(3)] for a in "xy"}  # type: ignore[misc]
    timing.cold(arms, timing.Effort(4, 1, 10.0, 1), CPU)
    warmed = 2 * timing.WARM_CALLS
    assert calls[warmed:] == ["x0", "y0", "x1", "y1", "x2", "y2", "x0", "y0"]
    calls.clear()
    timing.hot({"x": arms["x"][0], "y": arms["y"][0]}, timing.Effort(2, 1, 10.0, 1), CPU)
    assert calls[2:] == ["x0", "x0", "x0", "y0", "y0", "y0"] * 2


def test_slow_arms_keep_a_few_samples() -> None:
    slow, fast = [0], [0]

    def bump(counter: list[int]) -> None:
        counter[0] += 1

    limits = timing.Effort(samples=50, fewest=5, seconds=1e-9, hook_calls=1)
    timing.cold({"slow": [lambda: bump(slow)]}, limits, CPU)
    timing.cold({"fast": [lambda: bump(fast)]}, dataclasses.replace(limits, seconds=60), CPU)
    assert slow == [1 + 5]
    assert fast == [1 + 50]


def test_spread_and_rotation() -> None:
    assert timing.Spread.of([5.0, 1.0, 4.0, 2.0, 3.0, 0.0]) == timing.Spread(1.0, 2.0, 4.0)
    assert timing.FULL.rotation(75_000_000) == 4
    assert timing.FULL.rotation(75_000_001) == 4
    assert timing.FULL.rotation(74_999_999) == 5


def test_epoch_is_125_steps_and_62_merges() -> None:
    assert tables.engine_minutes(60e6, 0.0) == 125
    assert tables.engine_minutes(0.0, 60e6) == 62
