"""What discovery finds, in which order and under which names."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from aimmerge_fast.parameters import Parameters, discover
from tests.peft_models import Net, adapted, llama, lora, two_adapters


def require(found: Parameters, model: nn.Module, paths: dict[str, str]) -> None:
    """``paths``: expected name -> the parameter's own path, in the expected order."""
    assert found.names == tuple(paths)
    expected = [model.get_parameter(path) for path in paths.values()]
    assert all(a is b for a, b in zip(found.tensors(), expected, strict=True))


FIRST = "base_model.model.first."
HEAD = "base_model.model.head."
A = {FIRST + "lora_A.weight": FIRST + "lora_A.default.weight"}
B = {FIRST + "lora_B.weight": FIRST + "lora_B.default.weight"}
CONV = "base_model.model.conv."
WORDS = "base_model.model.words."

CASES: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "linear": ({}, A | B),
    "dora": (
        {"use_dora": True},
        A
        | B
        | {FIRST + "lora_magnitude_vector.weight": FIRST + "lora_magnitude_vector.default.weight"},
    ),
    "lora_bias": (
        {"lora_bias": True},
        A | B | {FIRST + "lora_B.bias": FIRST + "lora_B.default.bias"},
    ),
    "modules_to_save": (
        {"modules_to_save": ["head"]},
        A
        | B
        | {
            HEAD + "modules_to_save.weight": HEAD + "modules_to_save.default.weight",
            HEAD + "modules_to_save.bias": HEAD + "modules_to_save.default.bias",
        },
    ),
    "embedding": (
        {"target_modules": ["words"]},
        {
            WORDS + "lora_embedding_A": WORDS + "lora_embedding_A.default",
            WORDS + "lora_embedding_B": WORDS + "lora_embedding_B.default",
        },
    ),
    "conv": (
        {"target_modules": ["conv"]},
        {f"{CONV}lora_{x}.weight": f"{CONV}lora_{x}.default.weight" for x in "AB"},
    ),
    "trainable_tokens": (
        {"trainable_token_indices": {"words": [1, 3]}},
        {
            WORDS + "token_adapter.trainable_tokens_delta": WORDS
            + "token_adapter.trainable_tokens_delta.default"
        }
        | A
        | B,
    ),
    "base_biases": (
        {"bias": "lora_only"},
        {FIRST + "base_layer.bias": FIRST + "base_layer.bias"} | A | B,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_finds_what_peft_trains(case: str) -> None:
    settings, paths = CASES[case]
    model = adapted(**settings)
    found = discover(model)
    require(found, model, paths)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {id(t) for t in found.tensors()} == {id(p) for p in trained}  # PEFT's own opinion


def test_other_tuners_and_prompts() -> None:
    ia3 = peft.get_peft_model(
        Net(), peft.IA3Config(target_modules=["first"], feedforward_modules=[])
    )
    require(discover(ia3), ia3, {FIRST + "ia3_l": FIRST + "ia3_l.default"})
    settings = {"target_modules": ["first", "head"], "num_vectors": 4, "vector_length": 1, "r": 1}
    vblora = peft.get_peft_model(Net(), peft.VBLoRAConfig(topk=2, **settings))
    logits = [layer + f"vblora_logits_{x}" for layer in (FIRST, HEAD) for x in "AB"]
    bank = FIRST + "vblora_vector_bank"  # one for all layers, in the first of them
    assert sorted(discover(vblora).names) == sorted([bank, *logits])


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_prompts_of_the_active_adapter_only() -> None:
    prompts = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(llama(), prompts)
    assert isinstance(model, peft.PeftModel)
    model.add_adapter("other", prompts)
    for adapter in ("default", "other"):
        model.set_adapter(adapter)
        path = f"prompt_encoder.{adapter}.embedding.weight"
        require(discover(model), model, {"prompt_encoder.embedding.weight": path})


def test_the_active_adapter_is_the_default() -> None:
    model = two_adapters()
    require(discover(model), model, CASES["modules_to_save"][1])
    require(discover(model, "default"), model, CASES["modules_to_save"][1])
    model.set_adapter("other")
    other = {
        name: path.replace(".default", ".other")
        for name, path in (CASES["embedding"][1] | A | B).items()
    }
    require(discover(model), model, other)
    require(discover(model, ["other"]), model, other)


def test_several_adapters_keep_their_names() -> None:
    model = adapted()
    model.add_adapter("other", lora())
    model.base_model.set_adapter(["default", "other"])
    paths = [FIRST + f"lora_{x}.{adapter}.weight" for x in "AB" for adapter in ("default", "other")]
    require(discover(model), model, {path: path for path in paths})
    assert discover(model).names == discover(model, ["other", "default"]).names
    # One of them chosen, or one of them frozen (an earlier task's): a single one is trained.
    require(discover(model, "default"), model, A | B)
    model.base_model.set_requires_grad("other", requires_grad=False)
    require(discover(model), model, A | B)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_transposed_tied_adapters_count_once() -> None:
    config = lora(target_modules=["embed_tokens", "lm_head"], ensure_weight_tying=True)
    model = peft.get_peft_model(llama(tie_word_embeddings=True), config)
    prefix = "base_model.model."
    words = prefix + "model.embed_tokens.lora_embedding_"
    assert not model.get_parameter(prefix + "lm_head.lora_A.default.weight").is_contiguous()
    require(discover(model), model, {words + x: f"{words}{x}.default" for x in "AB"})


def test_full_fine_tuning_takes_what_requires_a_gradient() -> None:
    model = Net()
    model.conv.requires_grad_(False)
    names = ["words.weight", "first.weight", "first.bias", "head.weight", "head.bias"]
    require(discover(model), model, {name: name for name in names})
    model.add_module("again", model.head)  # the same module twice, and a Parameter with two owners
    model.first.bias = nn.Parameter(torch.zeros(8))
    model.register_parameter("alias", model.first.bias)
    names = ["alias", "words.weight", "first.weight", "head.weight", "head.bias"]
    require(discover(model), model, {name: name for name in names})


def test_compiled_model_has_the_same_names() -> None:
    model = Net()
    compiled: Any = torch.compile(model, backend="eager")
    assert next(compiled.named_parameters())[0] == "_orig_mod.words.weight"
    assert discover(compiled).names == discover(model).names


def test_iterables_of_tensors() -> None:
    model = Net()
    model.first.requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    found = discover(model.parameters())
    assert all(a is b for a, b in zip(found.tensors(), trained, strict=True))
    assert found.names[:2] == ("parameters[0]", "parameters[3]")
    pairs = list(model.named_parameters())
    assert discover(pairs).names == discover(model).names
    assert discover(iter(pairs)).signature() == discover(model).signature()
    matrix = torch.zeros(2, 3, requires_grad=True)
    assert discover([matrix, matrix, matrix.detach().T.requires_grad_()]).names == (
        "parameters[0]",
    )


def layouts() -> Iterator[tuple[str, Tensor, list[float]]]:
    """Name, tensor, and its entries in memory order, spelled out."""
    ramp = torch.arange(24.0)
    order = [float(x) for x in range(24)]
    yield "contiguous", ramp.clone().view(4, 6), order
    yield "transposed", ramp.clone().view(4, 6).t(), order
    yield "permuted", ramp.clone().view(2, 3, 4).permute(2, 0, 1), order
    yield "channels_last", ramp.clone().view(1, 2, 3, 4).permute(0, 3, 1, 2), order
    yield "offset", torch.arange(-3.0, 24.0)[3:], order
    yield "long_stride_of_one", ramp.clone().as_strided((1, 24), (99, 1)), order
    yield "scalar", torch.tensor(5.0), [5.0]
    yield "empty", torch.zeros(0, 7), []


def test_flat_is_the_memory_in_order() -> None:
    tensors = {name: t.requires_grad_() for name, t, _ in layouts()}
    found = discover(tensors.items())
    assert found.names == tuple(tensors)  # empty tensors are kept
    for flat, (name, _, order) in zip(found.flat(), layouts(), strict=True):
        assert flat.tolist() == order, name
        assert flat.stride() == (1,)
        assert not flat.requires_grad
        flat.neg_()
        assert sorted(tensors[name].flatten().tolist()) == sorted(-x for x in order), name
    assert found.addresses() == tuple(t.data_ptr() for t in tensors.values())
    assert tensors["offset"]._version == 1  # autograd notices what is written through a flat view


def test_empty_tensors_are_not_taken_for_tied() -> None:
    one, two = (torch.zeros(0, requires_grad=True) for _ in range(2))
    assert discover([one, two, one]).names == ("parameters[0]", "parameters[1]")


def test_signature_and_devices() -> None:
    tensors = [torch.zeros(2, dtype=dtype) for dtype in (torch.bfloat16, torch.float16)]
    found = discover([("a", tensors[0].requires_grad_()), ("b", tensors[1].requires_grad_())])
    assert json.loads(json.dumps(found.signature())) == [
        {"name": "a", "shape": [2], "dtype": "bfloat16"},
        {"name": "b", "shape": [2], "dtype": "float16"},
    ]
    assert found.devices() == [torch.device("cpu")]


def test_bf16_adapter() -> None:
    model = adapted().to(torch.bfloat16)
    assert {t.dtype for t in discover(model).tensors()} == {torch.bfloat16}


def test_peft_stays_unimported() -> None:
    code = (
        "import sys; from torch import nn; from aimmerge_fast.parameters import discover; "
        "assert discover(nn.Linear(2, 2)).names == ('weight', 'bias'); "
        "assert 'peft' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
