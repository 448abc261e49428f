"""Adapters exchanged under a merger: hot-swapped, loaded over, merged into the base."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.utils.hotswap import hotswap_adapter

from aimmerge_fast import AIMConfig, FastAIMMerger, ReferenceAIMMerger
from tests.peft.kinds import KINDS, Kind, lora
from tests.peft.models import bf16_net, net
from tests.peft.training import STEPS, Stream, bits

LINEAR = KINDS["linear"]


def trained_elsewhere(folder: Path, **settings: Any) -> Path:
    """An adapter for the same layers with other weights, saved."""
    model = Kind(net, lora("first", "head", init_lora_weights=False, **settings)).model(seed=5)
    model.save_pretrained(folder)
    return folder


def hotswap(model: Any, folder: Path) -> None:
    hotswap_adapter(model, str(folder), adapter_name="default", torch_device="cpu")


def load_over(model: Any, folder: Path) -> None:
    model.load_adapter(folder, "default", is_trainable=True)


@pytest.mark.parametrize("at", [None, 5])
@pytest.mark.parametrize("exchange", [hotswap, load_over])
def test_other_weights_in_the_same_memory(
    exchange: Callable[[Any, Path], None], at: int | None, tmp_path: Path
) -> None:
    """Between tasks they are where the task starts; inside one, a step that training made."""
    folder = trained_elsewhere(tmp_path, lora_alpha=5)
    ends = []
    for make in (FastAIMMerger, ReferenceAIMMerger):
        stream = Stream(LINEAR.model(), make)

        def swap(step: int, stream: Stream = stream) -> None:
            if step == at:
                exchange(stream.model, folder)

        torch.manual_seed(7)
        stream.task("first", STEPS[0])
        if at is None:
            exchange(stream.model, folder)
        stream.task("second", STEPS[1], swap)
        layer = stream.model.base_model.model.first
        ends.append((bits(stream.model), stream.decisions(), layer.scaling["default"]))
    assert ends[0] == ends[1]
    assert len(ends[0][1][1]) >= 2
    # a hot-swap brings its own scaling, which is none of ours; loading over one keeps what is there
    assert ends[0][2] == (5 / 2 if exchange is hotswap else 3 / 2)


def test_a_larger_rank_is_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    folder = trained_elsewhere(tmp_path, r=4)
    stream = Stream(LINEAR.model())
    stream.task("first", STEPS[0])
    optimizer = torch.optim.SGD([p for p in stream.model.parameters() if p.requires_grad], lr=0.0)
    merger = FastAIMMerger(stream.model, AIMConfig(schedule="at", merge_at=(1,)),
                           optimizer=optimizer)  # fmt: skip
    text = r"first\.lora_A\.weight' (changed its shape|is gone or no longer requires a gradient)"
    with merger.task("second"):
        merger.observe(torch.tensor(1.0))
        assert merger.due()
        hotswap(stream.model, folder)
        before = bits(stream.model)
        for call in (merger.open_merge, merger.rollback):
            with pytest.raises(RuntimeError, match=text):
                call()
    assert bits(stream.model) == before
    with pytest.raises(RuntimeError, match=text), merger.task("third"):
        pass


def test_bf16_adapters_loaded_over_are_new_fp32_parameters(tmp_path: Path) -> None:
    """The merger at hand names the dtype; a new one names the optimiser that lacks them."""
    half = Kind(bf16_net, lora("first"), autocast=False)
    model = half.model()
    model.save_pretrained(tmp_path)
    stream = Stream(model)
    stream.task("first", STEPS[0])
    load_over(model, tmp_path)
    with pytest.raises(RuntimeError, match=r"dtype from bfloat16 to float32.*new merger"):
        stream.task("second", 1)
    with pytest.raises(ValueError, match=r"optimizer does not hold parameter .*first\.lora_A"):
        FastAIMMerger(model, optimizer=stream.optimizer)
    again = Stream(model).run()
    assert len(again.decisions()[1]) >= 2


def test_loaded_over_in_the_same_dtype_on_a_bf16_base(tmp_path: Path) -> None:
    """PEFT's default, fp32 adapters: they are copied in place, and the merger goes on."""
    model = Kind(bf16_net, lora("first")).model()
    model.save_pretrained(tmp_path)
    stream = Stream(model)
    stream.task("first", STEPS[0])
    load_over(model, tmp_path)
    stream.task("second", STEPS[1])
    assert len(stream.decisions()[1]) >= 2


def test_merged_into_the_base_is_refused_by_name() -> None:
    """Before a merger is made, and by every call that would write to the adapter."""
    model = LINEAR.model()
    merger = FastAIMMerger(model, AIMConfig(schedule="fixed", s_init=1, s_min=1))
    text = r"adapter 'default' is merged into the base weights; call model.unmerge_adapter\(\)"
    with merger.task("task"):
        merger.observe(torch.tensor(1.0))
        assert merger.due()
        model.merge_adapter()
        before = bits(model)
        for call in (merger.open_merge, merger.rollback):
            with pytest.raises(RuntimeError, match=text):
                call()
        with pytest.raises(ValueError, match=text):
            FastAIMMerger(model)
        model.unmerge_adapter()
        merger.open_merge()
        model.merge_adapter()
        assert bits(model) == before
        with pytest.raises(RuntimeError, match=text):
            merger.close_merge()
        assert bits(model) == before
        model.unmerge_adapter()
        merger.close_merge()


def test_a_base_that_peft_changed_at_creation_is_part_of_the_adapter() -> None:
    """PiSSA and OLoRA take the adapter out of the base: A and B alone say nothing without it."""
    for init in ("pissa", "olora"):
        plain = net().first.weight
        model = KINDS[init].model()
        residue = model.base_model.model.first.base_layer.weight.detach().clone()
        layer = model.base_model.model.first
        assert not torch.equal(residue, plain)
        torch.testing.assert_close(residue + layer.get_delta_weight("default"), plain)
        Stream(model).run()
        assert torch.equal(layer.base_layer.weight, residue)
