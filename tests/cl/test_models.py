"""Loading, LoRA, estimates: on tiny models saved in the test."""

from __future__ import annotations

import importlib.util
import shutil
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from aimmerge_fast.cl import models
from aimmerge_fast.cl.encode import Encoder
from aimmerge_fast.cl.estimate import available
from aimmerge_fast.cl.loss import AnswerLoss
from tests.cl.tiny_models import (
    causal_model,
    end_adding_tokenizer,
    records,
    seq2seq_model,
    word_tokenizer,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    causal_model().save_pretrained(root / "causal")
    word_tokenizer().save_pretrained(root / "causal")
    seq2seq_model().save_pretrained(root / "seq2seq")
    end_adding_tokenizer().save_pretrained(root / "seq2seq")
    return {"causal": root / "causal", "seq2seq": root / "seq2seq"}


def gpt2() -> Any:
    return GPT2LMHeadModel(GPT2Config(vocab_size=24, n_embd=32, n_layer=1, n_head=4))


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_a_folder_is_loaded_frozen(folders: dict[str, Path], kind: str) -> None:
    loaded = models.load_model(folders[kind])
    assert loaded.seq2seq is (kind == "seq2seq")
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    original = causal_model() if kind == "causal" else seq2seq_model()
    for name, tensor in original.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor), name
    assert loaded.tokenizer("it is")["input_ids"][:2] == [17, 18]
    half = models.load_model(folders[kind], dtype="bfloat16").model
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_attention_is_the_models_own_or_the_given(folders: dict[str, Path]) -> None:
    own = models.load_model(folders["causal"]).model.config
    given = models.load_model(folders["causal"], attention="eager").model.config
    assert own._attn_implementation == "sdpa"
    assert given._attn_implementation == "eager"


def test_paths_that_hold_no_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such folder, .gguf file or .whl file"):
        models.load_model(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"holds no config.json; give a folder"):
        models.load_model(tmp_path)
    (tmp_path / "model.bin").touch()
    with pytest.raises(ValueError, match=r"give a folder, a .gguf file, or a .whl"):
        models.load_model(tmp_path / "model.bin")
    with pytest.raises(ValueError, match="unknown dtype 'int8'; known are float32, bfloat16"):
        models.load_model(tmp_path, dtype="int8")
    for names in ([], ["a.gguf", "b.gguf"]):
        with zipfile.ZipFile(tmp_path / "model.whl", "w") as wheel:
            for name in names:
                wheel.writestr(name, "x")
        with pytest.raises(ValueError, match=f"holds {len(names)} .gguf files, needs one"):
            models.load_model(tmp_path / "model.whl")


def test_a_gguf_without_its_reader_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.gguf").touch()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(RuntimeError, match=r"pip install 'aimmerge_fast\[gguf\]'"):
        models.load_model(tmp_path / "model.gguf")


def test_adapters_are_float32_and_drawn_from_the_seed() -> None:
    def drawn(seed: int) -> dict[str, Any]:
        base = causal_model().to(torch.bfloat16)
        state = torch.get_rng_state()
        model = models.add_lora(base, rank=4, seed=seed)
        assert torch.equal(state, torch.get_rng_state())
        return {name: p for name, p in model.named_parameters() if p.requires_grad}

    first, again, other = drawn(1), drawn(1), drawn(2)
    assert all(p.dtype == torch.float32 for p in first.values())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(p, other[n]) for n, p in first.items() if "lora_A" in n)
    assert all(p.abs().sum() == 0 for name, p in first.items() if "lora_B" in name)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (causal_model, {"q_proj", "v_proj"}),
        (seq2seq_model, {"q", "v"}),
        (gpt2, {"c_attn"}),
    ],
)
def test_default_targets_are_query_and_value(make: Any, expected: set[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = models.add_lora(make())
    assert set(model.peft_config["default"].target_modules) == expected
    given = models.add_lora(causal_model(), rank=2, alpha=4, dropout=0.5, targets=["down_proj"])
    config = given.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (2, 4, 0.5)
    assert config.target_modules == {"down_proj"}


def test_unknown_targets_list_the_linear_modules() -> None:
    known = "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj; 'query' is none"
    with pytest.raises(ValueError, match=known):
        models.add_lora(causal_model(), targets=["q_proj", "query"])
    with pytest.raises(ValueError, match="none was given or found by name"):
        models.add_lora(causal_model(), targets=[])


def test_fingerprint_is_of_names_and_bytes(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(folders["causal"], tmp_path / "copy")
    first = models.fingerprint(folders["causal"])
    assert models.fingerprint(copy) == first
    (copy / "notes.md").write_text("not of the model")
    assert models.fingerprint(copy) == first
    (copy / "generation_config.json").rename(copy / "other.json")
    assert models.fingerprint(copy) != first
    (copy / "other.json").rename(copy / "generation_config.json")
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert models.fingerprint(copy) != first
    with pytest.raises(FileNotFoundError, match="no such folder"):
        models.fingerprint(tmp_path / "nothing")


class Kept:
    """Bytes that autograd keeps for the backward, parameters not counted."""

    def __init__(self, model: Any) -> None:
        self.known = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.tensors: list[torch.Tensor] = []
        self.bytes = 0

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.known:
            self.known.add(storage.data_ptr())
            self.tensors.append(tensor)  # or another one could get its address
            self.bytes += storage.nbytes()
        return tensor


@pytest.mark.parametrize(
    ("kind", "attention"), [("causal", "sdpa"), ("causal", "eager"), ("seq2seq", None)]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_estimate_counts_before_anything_is_loaded(
    folders: dict[str, Path], tmp_path: Path, kind: str, attention: str | None, dtype: str
) -> None:
    loaded = models.load_model(folders[kind], dtype=dtype, attention=attention)
    model = models.add_lora(loaded.model, rank=4)
    model.train()
    asked = records(8, longest=200)
    encoder = Encoder(loaded.tokenizer, seq2seq=loaded.seq2seq)
    batch = encoder.collate(asked)
    kept = Kept(model)
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor):
        AnswerLoss(model, loaded.seq2seq)(model, batch)

    copy = shutil.copytree(folders[kind], tmp_path / "copy")
    (copy / "model.safetensors").unlink()
    tokens = batch["input_ids"].shape[1]
    size = {"batch": 8, "tokens": tokens, "rank": 4}
    found = models.estimate(copy, dtype=dtype, attention=attention, **size)
    frozen = [p for p in model.parameters() if not p.requires_grad]
    assert found.weights == sum(p.numel() * p.element_size() for p in frozen)
    assert found.adapter_entries == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert found.adapters >= 4 * 4 * found.adapter_entries  # weight, gradient, two moments
    assert found.total == found.weights + found.adapters + found.activations
    assert 0.5 < found.activations / kept.bytes < 2


def test_a_model_that_does_not_fit_is_refused_with_the_figures(folders: dict[str, Path]) -> None:
    found = models.estimate(folders["causal"], batch=1 << 12, tokens=1 << 13)
    found.require_fit("cpu", free=found.total)
    with pytest.raises(ValueError, match=r"does not fit on cpu, where .* GiB are free: weights 0"):
        found.require_fit("cpu", free=found.total - 1)
    with pytest.raises(ValueError, match=r"activations \d+\.\d\d GiB, total"):
        models.estimate(folders["causal"], batch=1 << 30, tokens=1 << 13).require_fit("cpu")
    assert 1 << 20 < available("cpu") < 1 << 50
    with pytest.raises(ValueError, match="'query' is none of them"):
        models.estimate(folders["causal"], targets=["query"])
