"""Every kind of adapter trains with real merges to the reference's bits; nothing else moves."""

from __future__ import annotations

import pytest
import torch

from aimmerge_fast import AIMConfig, FastAIMMerger, ReferenceAIMMerger
from aimmerge_fast.events import Open
from tests.peft.kinds import KINDS
from tests.peft.training import Stream, trained, trained_by

# peft reads a property that transformers has deprecated
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.mark.parametrize("kind", KINDS)
def test_trains_to_the_bits_of_the_reference(kind: str) -> None:
    _, ours = trained(kind)
    theirs = Stream(KINDS[kind].model(), ReferenceAIMMerger).run()
    for name, tensor in theirs.model.state_dict().items():
        assert torch.equal(ours.model.state_dict()[name], tensor), name
    probes, merges = ours.decisions()
    assert (probes, merges) == theirs.decisions()
    assert len(merges) >= 3
    assert sum(0 < new < 1 for *_, new, _ in merges) >= 2  # they take from both sides


@pytest.mark.parametrize("kind", KINDS)
def test_merges_all_that_trains_and_touches_nothing_else(kind: str) -> None:
    start, stream = trained(kind)
    found = stream.merger.binding.parameters.tensors()
    assert [id(t) for t in found] == [id(t) for t in trained_by(stream.model)]
    memories = {t.data_ptr() for t in found}
    for name, tensor in stream.model.state_dict().items():
        assert torch.equal(tensor, start[name]) == (tensor.data_ptr() not in memories), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_merge_is_equation_7_of_the_parameters_themselves(kind: str) -> None:
    """Against float64: A and B each by themselves, whatever is made of them in a forward."""
    model = KINDS[kind].model()
    live = trained_by(model)
    generator = torch.Generator().manual_seed(3)

    def move() -> None:
        with torch.no_grad():
            for tensor in live:
                noise = torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
                tensor.add_(noise, alpha=0.1)

    config = AIMConfig(schedule="fixed", s_init=1, s_min=1, alpha_new=0.7)
    merger = FastAIMMerger(model, config)
    anchor = [t.detach().double().clone() for t in live]
    with merger.task("task"):
        move()
        mid = [t.detach().double().clone() for t in live]
        merger.observe(torch.tensor(1.0))
        assert merger.due()
        merger.open_merge()
        move()  # in the place of the memory steps
        end = [t.detach().double().clone() for t in live]
        merger.close_merge()
    for tensor, a, j, m in zip(live, anchor, mid, end, strict=True):
        exact = a + 0.7 * (j - a) + 0.3 * (m - j)
        eps = torch.finfo(tensor.dtype).eps
        torch.testing.assert_close(tensor.detach().double(), exact, rtol=eps, atol=1e-6)
        assert not torch.equal(tensor.detach().double(), m)
    (merge,) = [event for event in merger.events if isinstance(event, Open)]
    l1 = sum(float((j - a).abs().sum()) for j, a in zip(mid, anchor, strict=True))
    assert merge.l1 == pytest.approx(l1, rel=1e-6)
