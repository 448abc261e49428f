"""A default device (``torch.set_default_device``) is for the loop's tensors, never for ours."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import nn

from aimmerge_fast import AIMConfig, FastAIMMerger
from aimmerge_fast.events import Event, to_json
from aimmerge_fast.fusion import EntryFusion
from tests.tables import bits_of


def run(
    backend: str, inside: AbstractContextManager[object], fusion: EntryFusion | None
) -> tuple[list[bytes], list[str]]:
    """Bits at the end, and every event, of 20 updates with a state restored halfway."""
    draw, cpu = torch.Generator().manual_seed(0), torch.device("cpu")
    live = [nn.Parameter(torch.randn(shape, generator=draw)) for shape in ((5, 3), (4100,))]
    events: list[Event] = []
    optimizer = torch.optim.SGD(live, lr=0.01)
    config = AIMConfig(s_init=2, alpha_new=None if fusion is None else 1.0)
    with inside:
        merger = FastAIMMerger(
            live,
            config,
            optimizer=optimizer,
            backend=backend,
            callbacks=[events.append],
            fusion=fusion,
        )
        with merger.task("task"):
            for step in range(20):
                for tensor in live:
                    tensor.grad = torch.randn(tensor.shape, generator=draw, device=cpu)
                optimizer.step()
                merger.observe(torch.tensor(0.3 + 0.1 * (step % 7), device=cpu))
                if merger.due():
                    merger.open_merge()
                    merger.close_merge()
        merger.load_state_dict(merger.state_dict())
    return [bits_of(tensor.detach()) for tensor in live], [str(to_json(e)) for e in events]


@pytest.mark.parametrize("backend", ["native", "eager"])
@pytest.mark.parametrize("fusion", [None, EntryFusion()], ids=["alpha", "entries"])
def test_a_default_device_changes_nothing(backend: str, fusion: EntryFusion | None) -> None:
    assert run(backend, torch.device("meta"), fusion) == run(backend, nullcontext(), fusion)
