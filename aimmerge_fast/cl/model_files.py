"""Model files: what they hold, before anything of them is loaded."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
#: Names of the query and value projections, by family: T5, most causal models, BERT-like, fused.
QUERY_VALUE = (("q", "v"), ("q_proj", "v_proj"), ("query", "value"), ("q_lin", "v_lin"))
FUSED = ("query_key_value", "qkv_proj", "c_attn", "Wqkv")


def check_dtype(dtype: str) -> None:
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; known are {', '.join(DTYPES)}")


def read_config(folder: Path, gguf: str | None = None) -> Any:
    """The transformers config of a model folder or of a GGUF's metadata."""
    from transformers import AutoConfig

    if gguf is None and not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"model {folder}: holds no config.json; give a folder saved by save_pretrained, "
            "a .gguf file, or a wheel that holds one"
        )
    if gguf is not None and importlib.util.find_spec("gguf") is None:
        raise RuntimeError(
            f"model {gguf}: reading it needs the package gguf; pip install 'aimmerge_fast[gguf]'"
        )
    source = {"gguf_file": gguf} if gguf else {}
    return AutoConfig.from_pretrained(folder, local_files_only=True, **source)


def model_factory(config: Any) -> Any:
    """The auto class that makes a language model of this config."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def linear_names(model: nn.Module) -> dict[str, str]:
    """Last name -> class name of the modules that LoRA can go on, in the model's order."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    return {
        name.rpartition(".")[2]: type(module).__name__
        for name, module in model.named_modules()
        if type(module).__name__ in ("Linear", "Conv1D") and module is not head
    }


def lora_targets(model: nn.Module, targets: Sequence[str] | None) -> list[str]:
    """``targets``, checked, or the last names of the query and value projections."""
    kinds = linear_names(model)
    chosen = _query_value(kinds) if targets is None else list(targets)
    unknown = [name for name in chosen if name not in kinds]
    if unknown or not chosen:
        wrong = f"{unknown[0]!r} is none of them" if unknown else "none was given or found by name"
        raise ValueError(
            f"LoRA targets must be linear modules of the model, {', '.join(kinds)}; {wrong}"
        )
    return chosen


def _query_value(kinds: dict[str, str]) -> list[str]:
    for pair in QUERY_VALUE:
        if all(name in kinds for name in pair):
            return list(pair)
    return [name for name in FUSED if name in kinds][:1]


def fingerprint(path: str | Path) -> str:
    """sha256 of the model's file, or of the names and contents of a folder's model files."""
    path = Path(path)
    _require(path)
    digest = hashlib.sha256()
    kinds = (".safetensors", ".bin", ".json", ".model", ".txt", ".jinja", ".gguf")
    files = sorted(f for f in path.iterdir() if f.suffix in kinds) if path.is_dir() else [path]
    for file in files:
        if path.is_dir():
            digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            for block in iter(lambda: stream.read(1 << 20), b""):
                digest.update(block)
    return digest.hexdigest()


def _require(path: Path) -> None:
    if not path.exists():
        raise FileNotFoundError(f"model {path}: no such folder, .gguf file or .whl file")


@contextlib.contextmanager
def unpacked(path: str | Path) -> Iterator[tuple[Path, str | None]]:
    """``(folder, gguf name or None)``; the GGUF of a wheel is unpacked to a temporary folder."""
    path = Path(path)
    _require(path)
    if path.is_dir():
        yield path, None
    elif path.suffix == ".gguf":
        yield path.parent, path.name
    elif path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel, tempfile.TemporaryDirectory() as folder:
            members = [m for m in wheel.infolist() if m.filename.endswith(".gguf")]
            if len(members) != 1:
                raise ValueError(f"model {path}: holds {len(members)} .gguf files, needs one")
            members[0].filename = "model.gguf"  # a flat name: nothing can land outside the folder
            wheel.extract(members[0], folder)
            yield Path(folder), "model.gguf"
    else:
        raise ValueError(f"model {path}: give a folder, a .gguf file, or a .whl that holds one")
