"""Saved states come back to the same bits, or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from aimmerge_fast.durable import tree as saved_tree
from aimmerge_fast.durable.files import Broken, read_json, write_json
from aimmerge_fast.durable.tree import load_optimizer, load_tree, packed_optimizer, save_tree

TENSORS: dict[str, Tensor] = {
    "matrix": torch.arange(6.0).reshape(2, 3),
    "scalar": torch.tensor(3.5, dtype=torch.float64),
    "empty": torch.zeros(0, 4),
    "bf16": torch.tensor([1.5, -0.0, float("nan"), float("-inf")], dtype=torch.bfloat16),
    "half": torch.tensor([[1.0], [2.0]], dtype=torch.float16).T,
    "bytes": torch.arange(5, dtype=torch.uint8),
    "whole": torch.tensor(-7, dtype=torch.int64),
    "truth": torch.tensor([True, False]),
    "strided": torch.arange(12.0)[::3],
}
PLAIN: dict[str, Any] = {
    "numbers": [1, 2.5, -0.0, 1e300],
    "text": 'snow ☃ and "quotes"\n',
    "none": None,
    "flag": True,
    "nested": {"list": [{"a": 1}, [[]], {}], "": "an empty key"},
}


def bits(tensor: Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return tensor.dtype, tuple(tensor.shape), raw


def test_a_tree_comes_back_to_the_same_bits(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "state.safetensors"
    save_tree(path, {"tensors": TENSORS, "plain": PLAIN, "pair": (1, TENSORS["scalar"])})
    found = load_tree(path)
    assert found["plain"] == PLAIN
    assert found["tensors"].keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert bits(found["tensors"][name]) == bits(tensor), name
    assert found["pair"][0] == 1  # a tuple comes back as a list
    assert bits(found["pair"][1]) == bits(TENSORS["scalar"])
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_tree_without_tensors(tmp_path: Path) -> None:
    save_tree(tmp_path / "s", PLAIN)
    assert load_tree(tmp_path / "s") == PLAIN


def test_what_shares_memory_is_saved_apart(tmp_path: Path) -> None:
    whole = torch.arange(4.0)
    save_tree(tmp_path / "s", {"a": whole, "b": whole[1:], "c": whole})
    found = load_tree(tmp_path / "s")
    found["a"][0] = 9
    assert found["b"].tolist() == [1, 2, 3]
    assert found["c"].tolist() == [0, 1, 2, 3]


def loaded_or_refused(path: Path) -> dict[str, Any] | None:
    """The tree; None where ``load_tree`` refuses it as damaged and says which file."""
    with contextlib.suppress(ValueError):
        return load_tree(path)
    with pytest.raises(ValueError, match=rf"saved state {re.escape(str(path))} is"):
        load_tree(path)
    return None


@pytest.mark.parametrize("part", ["header", "tensors", "spread"])
def test_every_changed_byte_is_detected(tmp_path: Path, part: str) -> None:
    path = tmp_path / "state"
    save_tree(path, {"a": torch.arange(40.0), "b": [1, torch.ones(3)], "text": "some words"})
    content = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    places = {
        "header": range(0, header, 5),
        "tensors": range(header, len(content), 3),
        "spread": range(0, len(content), 17),
    }[part]
    expected = load_tree(path)
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        found = loaded_or_refused(path)
        if found is None:
            continue
        # a letter case or white space in the file's own header may not matter; the content does
        assert json.dumps(found["text"]) == json.dumps(expected["text"]), place
        assert torch.equal(found["a"], expected["a"]), place
        assert place < header, place


@pytest.mark.parametrize(
    ("there", "instead"),
    [(b'"shape":[2,3]', b'"shape":[3,2]'), (b'"dtype":"F32"', b'"dtype":"I32"')],
)
def test_another_shape_or_type_of_the_same_bytes_is_detected(
    tmp_path: Path, there: bytes, instead: bytes
) -> None:
    path = tmp_path / "state"
    save_tree(path, {"a": torch.arange(6.0).reshape(2, 3)})
    content = path.read_bytes()
    assert content.count(there) == 1
    path.write_bytes(content.replace(there, instead))
    with pytest.raises(ValueError, match="does not match its sha256"):
        load_tree(path)


@pytest.mark.parametrize("kept", [0, 4, 8, 100, -1])
def test_a_cut_file_is_detected(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "state"
    save_tree(path, {"a": torch.arange(40.0)})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"saved state .*state is damaged"):
        load_tree(path)


def test_a_state_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no saved state .*nothing"):
        load_tree(tmp_path / "nothing")


def test_a_state_of_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved_tree, "VERSION", 9)
    save_tree(tmp_path / "s", {"a": 1})
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"is of version 9, not 1"):
        load_tree(tmp_path / "s")


def test_a_foreign_safetensors_file(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "s")
    with pytest.raises(ValueError, match="does not match its sha256"):
        load_tree(tmp_path / "s")


@pytest.mark.parametrize("tree", [{1: "a"}, {"a": {"__tensor__": "0"}}])
def test_keys_that_json_cannot_keep(tmp_path: Path, tree: dict[Any, Any]) -> None:
    with pytest.raises(TypeError, match="keys are strings"):
        save_tree(tmp_path / "s", tree)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [np.zeros(2), np.int64(3), {1, 2}, b"bytes"])
def test_values_that_json_cannot_keep(tmp_path: Path, value: Any) -> None:
    with pytest.raises(TypeError, match=f"not a {type(value).__name__}; convert it"):
        save_tree(tmp_path / "s", {"a": [value]})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s"
    save_tree(path, {"a": 1})

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_tree(path, {"a": 2})
    monkeypatch.undo()
    assert load_tree(path) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["s"]


def test_json_refuses_what_json_does_not_have(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}


def test_an_optimizer_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    def trained(steps: int) -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
        parameter = torch.nn.Parameter(torch.linspace(-1, 1, 5))
        optimizer = torch.optim.AdamW([parameter], lr=0.1)
        advance(parameter, optimizer, steps)
        return parameter, optimizer

    def advance(parameter: Tensor, optimizer: torch.optim.Optimizer, steps: int) -> None:
        for _ in range(steps):
            parameter.grad = parameter.detach() ** 2 - 0.3
            optimizer.step()

    whole, _ = trained(7)
    half, optimizer = trained(3)
    save_tree(tmp_path / "s", {"p": half, "o": packed_optimizer(optimizer), "none": None})
    found = load_tree(tmp_path / "s")
    fresh, again = trained(0)
    with torch.no_grad():
        fresh.copy_(found["p"])
    load_optimizer(again, found["o"])
    advance(fresh, again, 4)
    assert torch.equal(fresh, whole)


@pytest.mark.parametrize("content", [b'{"a": 1', b"", b"[1]", b"\xff"])
def test_a_damaged_json_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "some.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"some.json is damaged: "):
        read_json(path)
    write_json(path, {"a": [1]})
    assert read_json(path) == {"a": [1]}


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[1]",
        "3",
        '{"version": 1}',
        '{"version": 1, "tree": []}',
        '{"version": 1, "tree": {"a": {"__tensor__": "7"}}}',
        '{"version": 1, "tree": {"a": {"__tensor__": []}}}',
        '{"version": 1, "tree": ' + "[" * 9000,
    ],
)
def test_a_text_that_is_no_tree_is_damage(tmp_path: Path, text: str) -> None:
    """Its sha256 fits, as in a file that somebody made."""
    from safetensors.torch import save_file

    metadata = {"tree": text, "sha256": saved_tree._digest(text, {})}
    save_file({}, tmp_path / "s", metadata=metadata)
    with pytest.raises(Broken, match=r"saved state .*/s is damaged: "):
        load_tree(tmp_path / "s")
