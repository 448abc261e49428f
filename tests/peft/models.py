"""Base models small enough to train in milliseconds, with every layer that PEFT's kinds adapt.

Nothing here imports aimmerge_fast: a process without it builds them again to load what was saved.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

WORDS, WIDTH = 11, 6


class Experts(nn.Module):
    """A mixture whose weights are Parameters of three dimensions: (experts, out, in)."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, 8, WIDTH) / 3)
        self.down = nn.Parameter(torch.randn(3, WIDTH, 8) / 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(torch.einsum("bti,eoi->bteo", x, self.up))
        return torch.einsum("bteo,eio->bti", hidden, self.down) / 3


class Net(nn.Module):
    """Called as a Hugging Face model is: ids and labels (batch, time) in, loss and logits out."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.conv1 = nn.Conv1d(WIDTH, WIDTH, 3, padding=1)
        self.experts = Experts()
        self.first = nn.Linear(WIDTH, 8)
        self.drop = nn.Dropout(0.1)
        self.conv2 = nn.Conv2d(1, 2, 3, padding=1)
        self.head = nn.Linear(8, WORDS)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **_: Any) -> SimpleNamespace:
        x = self.words(input_ids)
        x = x + self.conv1(x.transpose(1, 2)).transpose(1, 2)
        x = self.drop(torch.tanh(self.first(x + self.experts(x))))
        x = x + self.conv2(x.unsqueeze(1)).mean(1)
        logits: Tensor = self.head(x)
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten())
        return SimpleNamespace(loss=loss, logits=logits)


def quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers of 8 bits and their scales, one a row."""
    scale = weight.detach().abs().amax(1, keepdim=True) / 127
    return (weight.detach() / scale).round().to(torch.int8), scale


class IntLinear(nn.Linear):
    """Still an ``nn.Linear``, so PEFT's default dispatch takes it; its weight is whole numbers."""

    scale: Tensor

    def __init__(self, source: nn.Linear) -> None:
        super().__init__(source.in_features, source.out_features)
        whole, scale = quantised(source.weight)
        self.weight = nn.Parameter(whole, requires_grad=False)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight * self.scale, self.bias)


class PackedLinear(nn.Module):
    """No ``nn.Linear`` and without a ``weight``, as packed formats are."""

    qweight: Tensor
    scale: Tensor

    def __init__(self, source: nn.Linear) -> None:
        super().__init__()
        self.infeatures, self.outfeatures = source.in_features, source.out_features
        whole, scale = quantised(source.weight)
        self.register_buffer("qweight", whole)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.qweight * self.scale)


class PackedLora(nn.Module, LoraLayer):
    """LoRA on a packed layer, as PEFT's own quantised layers are written."""

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, *, config: Any, r: int, lora_alpha: int,
        **_: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        LoraLayer.__init__(self, base_layer)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, r, lora_alpha=lora_alpha, config=config)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.base_layer(x)
        for name in self.active_adapters:
            low = self.lora_A[name](self.lora_dropout[name](x))
            result = result + self.lora_B[name](low) * self.scaling[name]
        return result


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def int_net() -> Net:
    model = net()
    model.first = IntLinear(model.first)
    return model


def packed_net() -> Net:
    model = net()
    model.first = PackedLinear(model.first)  # type: ignore[assignment]
    return model


def bf16_net() -> nn.Module:
    return net().to(torch.bfloat16)


def fp16_net() -> nn.Module:
    return net().to(torch.float16)


def llama() -> nn.Module:
    """A causal language model whose head is its embedding."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=True, pad_token_id=0,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model: nn.Module = LlamaForCausalLM(config)
    return model
