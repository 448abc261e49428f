"""Every kind of adapter that the tests train: its base model and its PEFT config.

Nothing here imports aimmerge_fast: a process without it loads what was saved.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import peft
import torch
from torch import Tensor, nn

from tests.peft.models import (
    PackedLinear,
    PackedLora,
    bf16_net,
    fp16_net,
    int_net,
    llama,
    net,
    packed_net,
)


class Kind(NamedTuple):
    """One kind of adapter.

    config: makes a fresh one; PEFT writes into the one that it is given.
    autocast: PEFT's ``autocast_adapter_dtype``: fp32 adapters on a bf16 or fp16 base.
    """

    base: Callable[[], nn.Module]
    config: Callable[[], peft.PeftConfig]
    autocast: bool = True

    def model(self, seed: int = 1) -> Any:
        base = self.base()
        torch.manual_seed(seed)
        return peft.get_peft_model(base, self.config(), autocast_adapter_dtype=self.autocast)


def lora(*targets: str, **settings: Any) -> Callable[[], peft.PeftConfig]:
    settings = {"r": 2, "lora_alpha": 3, "lora_dropout": 0.1} | settings
    return lambda: peft.LoraConfig(target_modules=list(targets), **settings)


def packed() -> peft.PeftConfig:
    config = peft.LoraConfig(r=2, target_modules=["first"])
    config._register_custom_module({PackedLinear: PackedLora})
    return config


def causal(**settings: Any) -> Callable[[], peft.PeftConfig]:
    return lora("q_proj", **settings, task_type="CAUSAL_LM")


def tuner(config: type[peft.PeftConfig], targets: Any = ("first", "head"), **settings: Any) -> Kind:
    """One of PEFT's tuners beside LoRA."""
    return Kind(net, lambda: config(target_modules=list(targets), **settings))


EXPERTS = {"target_parameters": ["experts.up", "experts.down"], "lora_dropout": 0.0}
KINDS = {
    "linear": Kind(net, lora("first", "head")),
    "embedding": Kind(net, lora("words")),
    "conv1d": Kind(net, lora("conv1")),
    "conv2d": Kind(net, lora("conv2")),
    "rslora": Kind(net, lora("first", "words", use_rslora=True)),
    "dora": Kind(net, lora("first", "words", "conv1", "conv2", use_dora=True)),
    "lora_bias": Kind(net, lora("first", "conv2", lora_bias=True)),
    "base biases": Kind(net, lora("first", bias="lora_only")),
    "modules_to_save": Kind(net, lora("first", modules_to_save=["head"])),
    "trainable tokens": Kind(net, lora("first", trainable_token_indices={"words": [1, 3]})),
    "trainable tokens alone": Kind(
        net, lambda: peft.TrainableTokensConfig(target_modules=["words"], token_indices=[1, 3])
    ),
    "tied adapters": Kind(
        llama,
        lora("embed_tokens", "lm_head", ensure_weight_tying=True, task_type="CAUSAL_LM"),
    ),
    "tied modules_to_save": Kind(
        llama, causal(modules_to_save=["embed_tokens", "lm_head"], ensure_weight_tying=True)
    ),
    "tied trainable tokens": Kind(llama, causal(trainable_token_indices={"embed_tokens": [1, 3]})),
    "target_parameters": Kind(net, lora("first", **EXPERTS)),
    "quantised base, nn.Linear": Kind(int_net, lora("first", "head")),
    "quantised base, custom module": Kind(packed_net, packed),
    "pissa": Kind(net, lora("first", init_lora_weights="pissa")),
    "olora": Kind(net, lora("first", init_lora_weights="olora")),
    "orthogonal": Kind(net, lora("first", init_lora_weights="orthogonal")),
    "bf16": Kind(bf16_net, lora("first", "words", modules_to_save=["head"]), autocast=False),
    "fp16": Kind(fp16_net, lora("first", "words", modules_to_save=["head"]), autocast=False),
    "fp32 adapters, bf16 head": Kind(bf16_net, lora("first", "words", modules_to_save=["head"])),
    "adalora": tuner(peft.AdaLoraConfig, init_r=2, target_r=1, total_step=50),
    "ia3": tuner(peft.IA3Config, feedforward_modules=["first"]),
    "vera": tuner(peft.VeraConfig, r=4, targets=["first"]),
    "loha": tuner(peft.LoHaConfig, r=2, targets=["first", "conv2"]),
    "lokr": tuner(peft.LoKrConfig, r=2, targets=["first", "conv2"]),
    "oft": tuner(peft.OFTConfig, oft_block_size=2, targets=["first"]),
    "hra": tuner(peft.HRAConfig, r=2),
    "miss": tuner(peft.MissConfig, r=2),
    "vblora": tuner(peft.VBLoRAConfig, num_vectors=4, vector_length=1, r=1, topk=2),
    "randlora": tuner(peft.RandLoraConfig, r=2, targets=["first"]),
    "fourierft": tuner(peft.FourierFTConfig, n_frequency=8),
    "delora": tuner(peft.DeloraConfig, r=2),
    "prompt tuning": Kind(
        llama, lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    ),
    "prefix tuning": Kind(
        llama, lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    ),
    "p-tuning": Kind(
        llama,
        lambda: peft.PromptEncoderConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=8
        ),
    ),
}


def batch(records: list[Any]) -> dict[str, Tensor]:
    ids = torch.tensor([record["ids"] for record in records])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 11, (count, 5), generator=generator).tolist()
    return [{"ids": row} for row in ids]


def outputs(model: Any) -> Tensor:
    """What it says to fixed inputs, in eval mode."""
    model.eval()
    with torch.no_grad():
        ids = batch(rows(4, seed=9))["input_ids"]
        logits: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return logits
