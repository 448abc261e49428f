"""The four backbones as transformers models with random weights and a LoRA adapter on q and v."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from training.settings import ALPHA, DROPOUT, RANK

#: Published values of each architecture; what is not named is the config class's default.
_LLAMA = {"vocab_size": 32_000, "max_position_embeddings": 4096}
_ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "t5-large": (
        "T5Config",
        {
            **{"d_model": 1024, "d_kv": 64, "d_ff": 4096, "num_heads": 16, "vocab_size": 32_128},
            **{"num_layers": 24, "num_decoder_layers": 24, "decoder_start_token_id": 0},
        },
    ),
    "qwen3-1.7b": (
        "Qwen3Config",
        {
            **{"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28},
            **{"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128},
            **{"vocab_size": 151_936, "tie_word_embeddings": True},
            **{"max_position_embeddings": 40_960},
        },
    ),
    "llama2-7b": (
        "LlamaConfig",
        {
            **_LLAMA,
            **{"hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32},
            **{"num_attention_heads": 32, "num_key_value_heads": 32},
        },
    ),
    "llama2-13b": (
        "LlamaConfig",
        {
            **_LLAMA,
            **{"hidden_size": 5120, "intermediate_size": 13_824, "num_hidden_layers": 40},
            **{"num_attention_heads": 40, "num_key_value_heads": 40},
        },
    ),
}
#: Widths of a model of the same family that a check can train in a moment.
_SMALL = {
    "T5Config": {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "dropout_rate": 0.0},
    "Qwen3Config": {
        **{"hidden_size": 32, "intermediate_size": 48, "head_dim": 8},
        **{"num_attention_heads": 4, "num_key_value_heads": 2},
    },
    "LlamaConfig": {
        **{"hidden_size": 32, "intermediate_size": 48},
        **{"num_attention_heads": 4, "num_key_value_heads": 4},
    },
}
SMALL_VOCABULARY = 64


def is_seq2seq(name: str) -> bool:
    """Whether the backbone has an encoder, so that a row has target tokens of its own."""
    return _ARCHITECTURES[name][0] == "T5Config"


def all_layers(name: str) -> int:
    """Layers of the architecture (T5: of the encoder, and as many of the decoder)."""
    settings = _ARCHITECTURES[name][1]
    return int(settings.get("num_hidden_layers") or settings["num_layers"])


def vocabulary(name: str) -> int:
    return int(_ARCHITECTURES[name][1]["vocab_size"])


def config(name: str, layers: int = 0, **changed: Any) -> Any:
    """The transformers config of a backbone; ``layers`` 0 keeps all, else so many (T5: twice)."""
    import transformers

    kind, settings = _ARCHITECTURES[name]
    deep = ("num_layers", "num_decoder_layers") if is_seq2seq(name) else ("num_hidden_layers",)
    fewer = dict.fromkeys(deep, layers) if layers else {}
    return getattr(transformers, kind)(**{**settings, **fewer, **changed})


def build(name: str, layers: int, dtype: torch.dtype, device: torch.device, seed: int) -> Any:
    """The PEFT model in training mode: a frozen base of ``dtype``, fp32 adapters, random values."""
    return _adapted(name, config(name, layers), dtype, device, (seed, DROPOUT))


def build_small(name: str, device: torch.device, seed: int) -> Any:
    """A model of the same family in fp32, narrow, two layers deep and without dropout."""
    kind = _ARCHITECTURES[name][0]
    narrow = config(name, 2, **_SMALL[kind], vocab_size=SMALL_VOCABULARY)
    narrow._attn_implementation = "eager"  # the fused kernels of a GPU may add up in any order
    return _adapted(name, narrow, torch.float32, device, (seed, 0.0))


def _adapted(
    name: str, of: Any, dtype: torch.dtype, device: torch.device, chance: tuple[int, float]
) -> Any:
    import peft
    import transformers

    kind: Any = transformers.AutoModelForCausalLM
    if is_seq2seq(name):
        kind = transformers.AutoModelForSeq2SeqLM
    seed, dropout = chance
    torch.manual_seed(seed)
    with torch.device(device):
        model = kind.from_config(of, dtype=dtype)
    adapter = peft.LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=dropout,
        target_modules=["q", "v"] if is_seq2seq(name) else ["q_proj", "v_proj"],
    )
    with warnings.catch_warnings():
        # PEFT asks transformers in an older spelling; nothing that a user could change
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        model = peft.get_peft_model(model.to(device), adapter)
    return model.train()
