"""Several adapters on one model: which of them are merged, and which nobody touches."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from aimmerge_fast import ReferenceAIMMerger
from tests.peft.kinds import KINDS, lora, outputs
from tests.peft.models import llama, net
from tests.peft.training import STEPS, Stream, bits, trained_by

OTHER = lora("first", "words", r=3)


def two(*active: str) -> Any:
    """``default`` on first and head, ``other`` on first and words; neither starts as a no-op."""
    model = KINDS["linear"].model()
    model.add_adapter("other", OTHER())
    torch.manual_seed(4)
    for name, tensor in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(tensor, std=0.1)
    model.base_model.set_adapter(list(active))
    return model


def names_of(model: Any, adapter: str) -> list[str]:
    return [name for name, _ in model.named_parameters() if f".{adapter}." in f"{name}."]


def test_two_active_ones_are_both_merged(tmp_path: Path) -> None:
    model = two("default", "other")
    stream = Stream(model).run()
    theirs = Stream(two("default", "other"), ReferenceAIMMerger).run()
    assert bits(model) == bits(theirs.model)
    assert stream.decisions() == theirs.decisions()
    merged = stream.merger.binding.parameters.tensors()
    assert len(merged) == len(names_of(model, "default") + names_of(model, "other")) == 8
    model.save_pretrained(tmp_path)
    plain = peft.PeftModel.from_pretrained(net(), tmp_path)
    plain.load_adapter(tmp_path / "other", "other")
    plain.base_model.set_adapter(["default", "other"])
    assert torch.equal(outputs(plain), outputs(model))


@pytest.mark.parametrize("adapters", [None, "default"])
@pytest.mark.parametrize("active", [("default",), ("other",), ("default", "other")])
def test_the_one_that_is_not_trained_stays_as_it_is(
    active: tuple[str, ...], adapters: str | None
) -> None:
    """Inactive, or active and frozen as that of an earlier task is."""

    def model() -> Any:
        made = two(*active)
        if len(active) > 1:
            made.base_model.set_requires_grad("other", requires_grad=False)
        return made

    if adapters is not None and adapters not in active:
        with pytest.raises(ValueError, match="adapter 'default' is frozen"):
            Stream(model(), adapters=adapters)
        return
    idle = "default" if active == ("other",) else "other"
    ours, theirs = Stream(model(), adapters=adapters), Stream(model(), ReferenceAIMMerger)
    before = bits(ours.model)
    ours.run()
    assert bits(ours.model) == bits(theirs.run().model)
    assert ours.decisions() == theirs.decisions()
    after = bits(ours.model)
    assert {name for name in after if after[name] == before[name]} >= set(
        names_of(ours.model, idle)
    )
    assert {name for name in after if after[name] != before[name]} == set(
        names_of(ours.model, active[0])
    )


def test_one_chosen_of_two_that_train() -> None:
    """The other is trained by the optimiser alone, memory steps included; no merge reaches it."""
    model = two("default", "other")
    stream = Stream(model, adapters="default").run()
    reference = two("default", "other")
    chosen = [p for name, p in reference.named_parameters() if ".default." in name]
    merged = [p for p in trained_by(reference) if any(p is q for q in chosen)]
    theirs = Stream(reference, ReferenceAIMMerger, merged=merged).run()
    assert len(merged) == 4
    assert bits(model) == bits(theirs.model)
    assert stream.decisions() == theirs.decisions()
    everything = Stream(two("default", "other")).run()
    assert bits(everything.model, ".other.") != bits(model, ".other.")


def injected() -> Any:
    return peft.inject_adapter_in_model(lora("first", "head")(), net())


def added_by_transformers() -> Any:
    model: Any = llama()
    model.add_adapter(lora("q_proj", "v_proj")())
    return model


def mixed() -> Any:
    model: Any = peft.get_peft_model(net(), lora("first")(), mixed=True)
    model.add_adapter("other", peft.LoHaConfig(r=2, target_modules=["head"]))
    model.set_adapter(["default", "other"])
    return model


@pytest.mark.parametrize("make", [injected, added_by_transformers, mixed])
def test_adapters_without_a_peft_model_around_them(make: Callable[[], Any]) -> None:
    ours, theirs = Stream(make()).run(), Stream(make(), ReferenceAIMMerger).run()
    assert bits(ours.model) == bits(theirs.model)
    assert ours.decisions() == theirs.decisions()
    merged = ours.merger.binding.parameters.tensors()
    assert [id(t) for t in merged] == [id(t) for t in trained_by(ours.model)]
    assert len(merged) >= 4


def interrupted(kind: str, folder: Path, at: int) -> tuple[dict[str, Any], Stream]:
    """What a caller saves after update ``at`` of the second task, and the stream run to its end."""
    stream = Stream(KINDS[kind].model())
    saved: dict[str, Any] = {}

    def save(step: int) -> None:
        if stream.done == STEPS[0] + at and not saved:
            stream.model.save_pretrained(folder)
            saved["merger"] = stream.merger.state_dict()
            saved["optimizer"] = copy.deepcopy(stream.optimizer.state_dict())
            saved["random"] = torch.get_rng_state()

    torch.manual_seed(7)
    stream.task("first", STEPS[0])
    stream.task("second", STEPS[1], save)
    return saved, stream


@pytest.mark.parametrize("kind", ["linear", "dora", "modules_to_save", "trainable tokens"])
def test_an_adapter_renamed_on_resume_goes_on(kind: str, tmp_path: Path) -> None:
    at = 8
    saved, whole = interrupted(kind, tmp_path, at)
    base = KINDS[kind].base()
    model: Any = peft.PeftModel.from_pretrained(
        base, tmp_path, adapter_name="renamed", is_trainable=True
    )
    resumed = Stream(model)
    resumed.memory.add("first", whole.memory_rows("first"))
    resumed.optimizer.load_state_dict(saved["optimizer"])
    resumed.merger.load_state_dict(saved["merger"])
    resumed.done = STEPS[0] + at
    torch.set_rng_state(saved["random"])
    resumed.task("second", STEPS[1] - at)
    expected = {name.replace(".default", ".renamed"): b for name, b in bits(whole.model).items()}
    assert bits(model) == expected
    merges = resumed.decisions()[1]
    assert len(merges) >= 1
    assert merges == whole.decisions()[1][-len(merges) :]


def test_a_renamed_one_among_several_is_refused() -> None:
    """Their names are kept then: which is which could not be told otherwise."""
    stream = Stream(two("default", "other")).run()
    model = KINDS["linear"].model()
    model.add_adapter("second", OTHER())
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(ValueError, match=r"state is of another model.*lora_embedding_A\.other"):
        Stream(model).merger.load_state_dict(stream.merger.state_dict())
