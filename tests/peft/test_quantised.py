"""LoRA on a quantised base: the adapters are plain tensors, the whole numbers are nobody's."""

from __future__ import annotations

import importlib.util
from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora import Linear
from torch import nn

from tests.peft.kinds import lora
from tests.peft.models import Net, PackedLora
from tests.peft.training import Stream, trained, trained_by

DISPATCHED = {
    "quantised base, nn.Linear": (Linear, "weight"),
    "quantised base, custom module": (PackedLora, "qweight"),
}


@pytest.mark.parametrize("kind", DISPATCHED)
def test_peft_itself_put_lora_on_whole_numbers(kind: str) -> None:
    """Which test_kinds.py then trains, and finds that the base is as it was."""
    layer_type, weight = DISPATCHED[kind]
    start, stream = trained(kind)
    layer = stream.model.base_model.model.first
    assert type(layer) is layer_type
    assert getattr(layer.base_layer, weight).dtype is torch.int8
    assert start[f"base_model.model.first.base_layer.{weight}"].dtype is torch.int8
    assert all(tensor.is_floating_point() for tensor in trained_by(stream.model))


def bitsandbytes_layer(bits_a_weight: int, source: nn.Linear) -> Any:
    import bitsandbytes

    sizes = source.in_features, source.out_features
    if bits_a_weight == 4:
        layer = bitsandbytes.nn.Linear4bit(*sizes, compute_dtype=torch.float32, quant_type="nf4")
    else:
        layer = bitsandbytes.nn.Linear8bitLt(*sizes, has_fp16_weights=False)
    layer.load_state_dict(source.state_dict())
    return layer


class Wide(Net):
    """64 wide: bitsandbytes quantises blocks of 64 weights."""

    def __init__(self, bits_a_weight: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(
            nn.Linear(6, 64), bitsandbytes_layer(bits_a_weight, nn.Linear(64, 64)), nn.Linear(64, 8)
        )  # type: ignore[assignment]


@pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
@pytest.mark.parametrize("bits_a_weight", [4, 8])
def test_bitsandbytes(bits_a_weight: int) -> None:
    """On the GPU where there is one, with bitsandbytes' own CPU kernels where not."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base = Wide(bits_a_weight).to(device)
    model: Any = peft.get_peft_model(base, lora("first.1")())
    whole = model.get_submodule("base_model.model.first.1").base_layer.weight
    assert whole.dtype is (torch.uint8 if bits_a_weight == 4 else torch.int8)
    before = whole.detach().clone()
    stream = Stream(model).run()
    assert len(stream.decisions()[1]) >= 2
    assert len(stream.merger.binding.parameters.tensors()) == 2
    assert torch.equal(whole, before)
