"""That a refused call changed nothing."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from tests.checkpoints import require_equal
from tests.loops import Loop, bits


def snapshot(loop: Loop) -> dict[str, Any]:
    """All that a caller owns, and the merger's own state."""
    return {
        "parameters": bits(loop.model.parameters()),
        "gradients": [None if p.grad is None else p.grad.clone() for p in loop.parameters],
        "optimizer": copy.deepcopy(loop.optimizer.state_dict()),
        "memory": loop.memory.fingerprint(),
        "random": torch.get_rng_state(),
        "merger": loop.merger.state_dict(),
        "events": len(loop.merger.events),
    }


@contextmanager
def refused(
    loop: Loop, error: type[Exception], message: str, *, merger: bool = True
) -> Iterator[None]:
    """The block raises ``error`` with one line that matches, and changes nothing.

    ``merger=False``: nothing of the caller's; the merger's buffers may have been made ready.
    """
    before = snapshot(loop)
    with pytest.raises(error, match=message) as caught:
        yield
    assert "\n" not in str(caught.value)
    after = snapshot(loop)
    require_equal(after, before if merger else before | {"merger": after["merger"]})
