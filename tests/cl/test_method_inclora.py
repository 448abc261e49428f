"""IncLoRA: h = W0 x + s sum_i B_i A_i x, earlier pairs frozen."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from aimmerge_fast.cl.encode import IGNORED
from tests.cl.bare import FIRST, SECOND, adapter, bench, task, train

LAYER = "base_model.model.model.layers.0.self_attn.q_proj"


def trained(tasks: int) -> Any:
    work = bench()
    method = work.method("inclora")
    data = (FIRST, SECOND, task("third", 3))
    ends = []
    for index in range(tasks):
        train(method, data[index], index, 5)
        ends.append(adapter(work.trainee))
    return work, ends


def of(tensors: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in tensors.items() if f".{name}." in key}


def test_earlier_adapters_stay_to_the_bit_and_the_new_one_trains() -> None:
    work, (first, second, third) = trained(3)
    names = list(work.trainee.model.peft_config)
    assert names == ["default", "task2", "task3"]
    for name, end in (("default", first), ("task2", second)):
        assert all(torch.equal(tensor, third[key]) for key, tensor in of(end, name).items())
    assert all(float(t.abs().sum()) > 0 for t in of(third, "task3").values())  # B began at 0
    held = {id(p) for p in work.trainee.optimizer.param_groups[0]["params"]}
    wanted = {n for n, p in work.trainee.model.named_parameters() if id(p) in held}
    assert wanted == set(of(third, "task3"))
    assert wanted == {n for n, p in work.trainee.model.named_parameters() if p.requires_grad}


def test_the_layer_is_the_sum_of_all_pairs() -> None:
    work, _ = trained(3)
    model = work.trainee.model.eval()
    layer = model.get_submodule(LAYER)
    x = np.random.default_rng(0).normal(size=(5, 32)).astype(np.float32)
    expected = x @ layer.base_layer.weight.detach().numpy().T
    for name in model.peft_config:
        a, b = (layer.get_submodule(f"lora_{part}.{name}").weight.detach().numpy() for part in "AB")
        expected = expected + (4 / 2) * x @ a.T @ b.T  # s = alpha / r
    with torch.no_grad():
        found = layer(torch.from_numpy(x)).numpy()
    assert np.allclose(found, expected, atol=1e-5)


def test_the_output_uses_the_earlier_adapters() -> None:
    work, _ = trained(2)
    trainee = work.trainee
    model = trainee.model.eval()
    batch = trainee.collate(FIRST.train[:4])
    assert bool((batch["labels"] != IGNORED).any())
    with torch.no_grad():
        whole = trainee.loss(model, batch)
        for name, parameter in model.named_parameters():
            if ".lora_B.default." in name:
                parameter.zero_()
        without = trainee.loss(model, batch)
    assert not torch.equal(whole, without)


def test_new_adapters_are_drawn_from_the_seed_alone() -> None:
    starts = []
    for noise in (1, 2):
        work = bench()
        method = work.method("inclora")
        train(method, FIRST, 0, 2)
        torch.manual_seed(noise)
        train(method, SECOND, 1, 0)
        starts.append(of(adapter(work.trainee), "task2"))
    assert all(torch.equal(starts[0][key], starts[1][key]) for key in starts[0])
    assert {float(t.abs().sum()) for k, t in starts[0].items() if "lora_B" in k} == {0.0}


def test_unload_gives_the_base_back() -> None:
    work, _ = trained(2)
    work.trainee.model.eval()
    base = work.trainee.model.unload()
    assert not [name for name, _ in base.named_parameters() if "lora" in name]
    assert not hasattr(base, "peft_config")
