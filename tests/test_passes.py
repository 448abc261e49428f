"""How records are dealt out and counted, and what ranks add up, without any other process."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from aimmerge_fast.distributed import Processes
from aimmerge_fast.passes import Passes, shifts_labels, to_device, weighed
from tests.peft_models import llama


def passes(rank: int, world: int, shifted: bool = False, micro_batch: int | None = None) -> Passes:
    processes: Any = SimpleNamespace(rank=rank, world=world, alone=world == 1)

    def collate(rows: list[list[int]]) -> dict[str, Tensor]:
        return {"labels": torch.tensor(rows)}

    return Passes(collate, lambda model, batch: batch, None, micro_batch, processes, shifted)


ROWS = [[1, -100, 3], [-100, -100, 6], [7, 8, 9], [-100, -100, -100], [1, -100, -100]]


@pytest.mark.parametrize(("shifted", "counts"), [(False, [6, 1]), (True, [3, 1])])
def test_items_are_the_labels_that_count(shifted: bool, counts: list[int]) -> None:
    parts = [passes(rank, 2, shifted).deal(ROWS)[0] for rank in (0, 1)]
    assert [part.items for part in parts] == counts
    assert [part.weight for part in parts] == [2 * count / sum(counts) for count in counts]
    rows = [part.batch()["labels"].tolist() for part in parts]
    assert rows == [ROWS[0::2], ROWS[1::2]]


def test_a_rank_without_items_passes_a_batch_that_has_some() -> None:
    """Its weight is 0, and 0 times the mean of nothing would be no number."""
    parts = [passes(rank, 3).deal([[1, 2], [-100, -100]])[0] for rank in range(3)]
    assert [part.items for part in parts] == [2, 0, 0]
    assert [part.weight for part in parts] == [3.0, 0.0, 0.0]
    assert all(part.batch()["labels"].tolist() == [[1, 2]] for part in parts)


def test_a_batch_without_any_item_is_no_number() -> None:
    (part,) = passes(0, 2).deal([[-100], [-100]])
    assert math.isnan(part.weight)  # type: ignore[arg-type]


def test_micro_batches_of_a_share() -> None:
    parts = passes(1, 2, micro_batch=1).deal(ROWS)
    assert [part.items for part in parts] == [1, 0, 0]  # the third repeats: rank 0 has three
    assert parts[2].batch()["labels"].tolist() == [ROWS[0]]


@pytest.mark.parametrize("items", [0, torch.tensor(0)])
def test_a_mean_of_nothing_weighs_nothing(items: Any) -> None:
    assert weighed(torch.tensor(math.nan), items).item() == 0.0
    assert weighed(torch.tensor(2.5), items + 4).item() == 10.0


def test_which_models_shift_their_labels() -> None:
    transformers = pytest.importorskip("transformers")
    assert shifts_labels(llama())
    small = {"num_layers": 1, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_heads": 2, "vocab_size": 9}
    t5 = transformers.T5ForConditionalGeneration(transformers.T5Config(**small))
    assert not shifts_labels(t5)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9}
    config = transformers.BertConfig(intermediate_size=8, **sizes)
    assert not shifts_labels(transformers.BertForSequenceClassification(config))
    assert not shifts_labels(transformers.BertForMaskedLM(config))
    assert not shifts_labels(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("bad", "counted"), [([5.0, 5.0, 5.0], [5.0, 0.0, 0.0]), ([0.0, 1.0, 0.0], [0.0, 1.0, 0.0])]
)
def test_what_replicas_hold_counts_once(
    bad: list[float], counted: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    processes = Processes(None)
    monkeypatch.setattr(processes, "_owners", [True, False, False])
    rows = torch.tensor([[9.0, 2.5, count] for count in bad], dtype=torch.float64)
    monkeypatch.setattr(processes, "_gather", lambda *_: rows)
    found = processes.partials(torch.zeros(2, dtype=torch.float64))
    assert found.tolist() == [[2.5, counted[0]], [0.0, counted[1]], [0.0, counted[2]]]


class Carried(torch.Tensor):
    """Notes how it is moved, and stays where it is: there is no GPU to go to."""

    moves: ClassVar[list[Any]] = []

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.pin_memory, torch.Tensor.to):
            cls.moves.append((func.__name__, *args[1:], kwargs or {}))
            return args[0]
        return super().__torch_function__(func, types, args, kwargs or {})


def test_what_goes_to_a_gpu_goes_through_page_locked_memory() -> None:
    gpu, batch = torch.device("cuda", 0), {"x": (torch.zeros(2).as_subclass(Carried), "kept")}
    Carried.moves.clear()
    assert to_device(batch, gpu)["x"][1] == "kept"
    assert Carried.moves == [("pin_memory", {}), ("to", gpu, {"non_blocking": True})]
    Carried.moves.clear()
    assert to_device(batch, torch.device("cpu"))["x"][0] is batch["x"][0]
    to_device(batch, torch.device("meta"))
    assert Carried.moves == [("to", torch.device("meta"), {"non_blocking": True})]
