"""Small models with PEFT adapters, for the tests of parameter discovery."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 6)
        self.first = nn.Linear(6, 8)
        self.conv = nn.Conv2d(2, 4, 3)
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        head: Tensor = self.head(self.first(self.words(ids)))
        return head


def lora(**settings: Any) -> peft.LoraConfig:
    return peft.LoraConfig(**({"r": 2, "target_modules": ["first"]} | settings))


def adapted(seed: int = 0, **settings: Any) -> peft.PeftModel:
    torch.manual_seed(seed)
    model = peft.get_peft_model(Net(), lora(**settings))
    assert isinstance(model, peft.PeftModel)
    return model


def llama(**settings: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=13,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        **settings,
    )
    model: nn.Module = transformers.LlamaForCausalLM(config)
    return model


def two_adapters() -> peft.PeftModel:
    model = adapted(modules_to_save=["head"])
    model.add_adapter("other", lora(target_modules=["first", "words"]))
    return model


TARGETS = ["words", "first"]
LAYER = "base_model.model."
#: where ``two_layers`` has its trainable parameters, and how discovery names them
PATHS = (
    LAYER + "words.lora_embedding_A.default",
    LAYER + "words.lora_embedding_B.default",
    LAYER + "first.lora_A.default.weight",
    LAYER + "first.lora_B.default.weight",
)
NAMES = tuple(path.replace(".default", "") for path in PATHS)


def two_layers(seed: int = 0) -> peft.PeftModel:
    return adapted(seed, target_modules=TARGETS, init_lora_weights=False)


def lora_a(model: nn.Module) -> Any:
    """The ``ModuleDict`` of one layer, keyed by adapter."""
    return model.get_submodule(LAYER + "first.lora_A")


def clone_data(model: Any) -> None:
    """Re-allocate one parameter, the values as they were."""
    weight = lora_a(model).default.weight
    weight.data = weight.data.clone()
