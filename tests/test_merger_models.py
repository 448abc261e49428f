"""The merger on PEFT models, and on models whose parameters move or are replaced meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from aimmerge_fast import AIMConfig, FastAIMMerger, RehearsalMemory
from aimmerge_fast.events import Open
from tests.backends import USABLE
from tests.loops import Loop, anchor_of, bits, loss_fn, net
from tests.peft_models import llama

transformers = pytest.importorskip("transformers")
# peft reads a property that transformers has deprecated
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
LORA: dict[str, Any] = {"r": 2, "lora_dropout": 0.1, "init_lora_weights": False}


def t5() -> nn.Module:
    config = transformers.T5Config(
        vocab_size=13, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2,
        decoder_start_token_id=0,
    )  # fmt: skip
    model: nn.Module = transformers.T5ForConditionalGeneration(config)
    return model


BACKBONES: dict[str, tuple[Callable[[], nn.Module], list[str], int]] = {
    "llama": (llama, ["q_proj", "v_proj"], 4),
    "t5": (t5, ["q", "v"], 12),
}


def tokens(chosen: list[Any]) -> dict[str, Tensor]:
    ids = torch.tensor([record["ids"] for record in chosen])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def adapted(name: str) -> Any:
    torch.manual_seed(0)
    make, targets, _ = BACKBONES[name]
    return peft.get_peft_model(make(), peft.LoraConfig(target_modules=targets, **LORA))


def train_adapter(name: str, backend: str, steps: int = 25) -> tuple[Any, FastAIMMerger]:
    """One task of a PEFT model as the README shows it: no loss_fn, labels in the batch."""
    model = adapted(name)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    memory = RehearsalMemory(ratio=0.5)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 13, (40, 5), generator=generator).tolist()
    memory.add("earlier", [{"ids": row} for row in ids])
    config = AIMConfig(s_init=3, s_max=6, gamma_forget=1.01)
    merger = FastAIMMerger(model, config, optimizer=optimizer, collate=tokens, backend=backend)
    with merger.task("task", memory):
        for step in range(steps):
            model(**tokens([{"ids": row} for row in ids[step % 5 :: 5]])).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            merger.step()
    return model, merger


@pytest.mark.parametrize("name", BACKBONES)
def test_a_peft_model_trains_and_merges(name: str) -> None:
    ends = []
    for backend in USABLE:
        start = {key: value.clone() for key, value in adapted(name).state_dict().items()}
        model, merger = train_adapter(name, backend)
        opens = [event for event in merger.events if isinstance(event, Open)]
        assert len(opens) >= 4
        assert len(merger.binding.parameters.names) == BACKBONES[name][2]
        for key, value in model.state_dict().items():
            assert torch.equal(value, start[key]) == ("lora_" not in key), key
        trained = [p for p in model.parameters() if p.requires_grad]
        assert all(torch.isfinite(p).all() for p in trained)
        ends.append((bits(trained), opens))
    assert all(end == ends[0] for end in ends)


def reallocate(loop: Loop) -> None:
    for parameter in loop.parameters:
        parameter.data = parameter.data.clone()


def replace(loop: Loop) -> None:
    """A new Parameter in the place of one, and the optimiser told about it."""
    old = loop.model[0].weight
    new = loop.model[0].weight = nn.Parameter(old.detach().clone())
    (group,) = loop.optimizer.param_groups
    group["params"] = [new if p is old else p for p in group["params"]]
    loop.optimizer.state[new] = loop.optimizer.state.pop(old)
    loop.parameters = list(loop.model.parameters())


@pytest.mark.parametrize("backend", USABLE)
@pytest.mark.parametrize("mode", ["shared", "separate", "snapshot"])
@pytest.mark.parametrize("change", [reallocate, replace])
def test_parameters_that_moved_are_found_again(
    change: Callable[[Loop], None], mode: str, backend: str
) -> None:
    """Between merges, inside an open one, and between tasks."""
    loops = []
    for moves in (False, True):
        loop = Loop(schedule="fixed", s_init=3, memory_optimizer=mode, lr=0.02,
                    keywords={"backend": backend})  # fmt: skip
        torch.manual_seed(7)
        for task in ("one", "two"):
            with loop.merger.task(task, loop.memory):
                for step in range(1, 8):
                    if moves and step in (2, 3, 5):
                        change(loop)
                    loop.update()
                    loop.merger.step()
                loop.merger.open_merge()
                with torch.no_grad():
                    for p in loop.parameters:
                        p.mul_(1.01)
                if moves:
                    change(loop)
                loop.merger.close_merge()
            if moves:
                change(loop)
        loops.append(loop)
    still, moved = loops
    assert still.bits() == moved.bits()
    assert still.merger.events == moved.merger.events


def test_a_replaced_parameter_that_the_optimizer_lacks_is_named() -> None:
    loop = Loop(schedule="fixed", s_init=2)
    with loop.merger.task("task", loop.memory):
        loop.train(1)
        loop.model[3].bias = nn.Parameter(loop.model[3].bias.detach().clone())
        loop.update()
        before = bits(loop.model.parameters())
        with pytest.raises(ValueError, match=r"optimizer does not hold parameter '3\.bias'"):
            loop.merger.step()
        assert bits(loop.model.parameters()) == before


def test_a_parameter_of_another_dtype_is_named() -> None:
    loop = Loop(schedule="fixed", s_init=2, optimizer=torch.optim.SGD)
    with loop.merger.task("task", loop.memory):
        loop.train(1)
        loop.model.to(torch.bfloat16)
        loop.update()
        before = loop.bits()
        for call in (loop.merger.step, loop.merger.rollback):
            with pytest.raises(RuntimeError, match=r"'0\.weight' changed its dtype from float32"):
                call()
        assert loop.bits() == before


@pytest.mark.parametrize("assign", [False, True])
def test_load_adapter_in_the_middle_of_a_task(assign: bool, tmp_path: Path) -> None:
    """In place it is just other weights; assigned ones must reach the optimiser too."""
    model = adapted("llama")
    model.save_pretrained(str(tmp_path))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.0)
    merger = FastAIMMerger(model, AIMConfig(schedule="at", merge_at=(2,)), optimizer=optimizer)
    with merger.task("task"):
        anchor = anchor_of(merger)
        for step in range(2):
            with torch.no_grad():
                for p in trained:
                    p.add_(0.5)
            if step == 0:
                model.load_adapter(
                    str(tmp_path), "default", is_trainable=True, low_cpu_mem_usage=assign
                )
            merger.observe(torch.tensor(1.0))
            due = merger.due()
        assert due
        now = [p for p in model.parameters() if p.requires_grad]
        assert all(p is q for p, q in zip(now, trained, strict=True)) == (not assign)
        if assign:
            with pytest.raises(ValueError, match="optimizer does not hold parameter"):
                merger.open_merge()
            return
        merger.open_merge()
        merger.close_merge()
    (merge,) = [event for event in merger.events if isinstance(event, Open)]
    entries = sum(p.numel() for p in now)
    assert merge.l1 == pytest.approx(0.5 * entries, rel=1e-5)
    assert bits(anchor_of(merger)) == bits(now) != bits(anchor)


@pytest.mark.parametrize("backend", USABLE)
def test_a_graph_kept_across_a_merge_is_refused_by_autograd(backend: str) -> None:
    """Our writes count as in-place changes, also those of a rejected snapshot."""
    for spoilt in (False, True):
        model = net()
        config = AIMConfig(on_reject="continue")
        merger = FastAIMMerger(model, config, backend=backend)
        with merger.task("task"):
            merger.observe(torch.tensor(1.0))
            merger.due()
            if spoilt:
                with torch.no_grad():
                    model[0].bias[0] = float("nan")
            batch = torch.ones(3, 6), torch.zeros(3, dtype=torch.long)
            if spoilt:
                loss = loss_fn(model, batch)
            merger.open_merge()
            if not spoilt:
                loss = loss_fn(model, batch)
                merger.close_merge()
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()
            if spoilt:
                merger.close_merge()
