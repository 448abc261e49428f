"""What the per-entry ops may be given, and what they refuse."""

from __future__ import annotations

import pytest
import torch

from aimmerge_fast import kernels
from tests.test_kernels_entries import BACKENDS


@BACKENDS
def test_shapes_and_strides_do_not_matter(backend: str) -> None:
    generator = torch.Generator().manual_seed(1)
    theta, gradient = (torch.randn(40, 70, generator=generator) for _ in range(2))
    found = []
    for tensors in (
        (theta.view(-1), gradient.view(-1)),
        (theta, gradient.t().contiguous().t()),
        (theta.t().contiguous().t(), gradient),
        (torch.nn.Parameter(theta), gradient.repeat(1, 2)[:, :70].requires_grad_()),
    ):
        made = kernels.new_importance(tensors[:1])
        for _ in range(2):
            pair = made.state_dict().values()
            kernels.importance_(tensors[:1], tensors[1:], *pair, backend=backend)
        found.append(torch.cat([*made.state_dict().values()]))
    assert all(torch.equal(each, found[0]) for each in found)
    assert found[0].count_nonzero() == 5600


@BACKENDS
def test_gradients_may_move_and_vanish(backend: str) -> None:
    """As with ``zero_grad``: what was known of their addresses is not used again."""
    theta = [torch.ones(5000), torch.ones(3)]
    made = kernels.new_importance(theta)
    kept = []
    for value, known in ((1.0, True), (2.0, True), (0.0, False), (3.0, True), (3.0, True)):
        kept.append([torch.full((5000,), value) if known else None, torch.zeros(3)])
        made.reset_()
        kernels.importance_(theta, kept[-1], *made.state_dict().values(), 0.5, backend=backend)
        assert made.scores()[0].shape == (5000,)
        assert bool((made.sensitivity[:5000] == value / 2).all())


@BACKENDS
def test_a_graph_across_a_fusion_is_refused(backend: str) -> None:
    weight = torch.nn.Parameter(torch.ones(8))
    live = [weight.detach()]
    arenas = [kernels.new_arena(live).zero_() for _ in range(2)]
    none = kernels.new_importance(live)
    loss = (weight * weight).sum()
    kernels.weighted_(live, *arenas, none, none, torch.zeros(2), backend=backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_an_importance_is_saved_and_loaded() -> None:
    theta = [torch.ones(5)]
    made, other = kernels.new_importance(theta), kernels.new_importance(theta)
    kernels.importance_(theta, theta, *made.state_dict().values())
    other.load_state_dict({name: each.clone() for name, each in made.state_dict().items()})
    assert torch.equal(other.sensitivity, made.sensitivity)
    assert torch.equal(other.uncertainty, made.uncertainty)
    for state in ({}, made.state_dict() | {"uncertainty": torch.zeros(6)}):
        with pytest.raises(ValueError, match="saved for other parameters"):
            other.load_state_dict(state)


REFUSED = {
    "gradients: 1 for 2": "1 gradients for 2 parameters",
    "a gradient of another dtype": r"gradients\[1\] has 3 entries of torch.float64",
    "a gradient of another size": r"gradients\[0\] has 5 entries",
    "a parameter of another dtype": r"live\[0\] is torch.float64",
    "beta": "beta2 must be between 0 and 1, got 1.5",
    "short": "uncertainty has 60 entries, these tensors need 67",
    "whole numbers": "sensitivity must be 1-D contiguous float32",
    "twice": "sensitivity and uncertainty are the same memory",
    "three weights": "weights must be four pairs",
    "thresholds": "thresholds must be two float32 numbers",
    "an arena": "mid must be a contiguous uint8 arena of 268 bytes",
    "a crooked arena": "anchor starts at no multiple of 16 bytes",
    "twice live": r"live\[0\] and live\[1\] share memory",
    "an importance": "past.sensitivity has 60 entries",
    "a backend": "unknown backend 'fast'",
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what: str) -> None:
    theta = [torch.ones(4), torch.ones(3)]
    made = kernels.new_importance(theta)
    arenas = [kernels.new_arena(theta).zero_() for _ in range(2)]
    s, u = made.sensitivity, made.uncertainty
    short = kernels.Importance(s[:60], u, made.places)
    step = {
        "gradients: 1 for 2": lambda: kernels.importance_(theta, theta[:1], s, u),
        "a gradient of another dtype": lambda: kernels.importance_(
            theta, [None, theta[1].double()], s, u
        ),
        "a gradient of another size": lambda: kernels.importance_(
            theta, [torch.ones(5), None], s, u
        ),
        "a parameter of another dtype": lambda: kernels.importance_(
            [theta[0].double()], [None], s, u
        ),
        "beta": lambda: kernels.importance_(theta, theta, s, u, 0.5, 1.5),
        "short": lambda: kernels.importance_(theta, theta, s, u[:60]),
        "whole numbers": lambda: kernels.importance_(theta, theta, s.int(), u),
        "twice": lambda: kernels.importance_(theta, theta, s, s),
        "three weights": lambda: kernels.weighted_(
            theta, *arenas, made, made, torch.zeros(2), [(1.0, 0.0)] * 3
        ),
        "thresholds": lambda: kernels.weighted_(theta, *arenas, made, made, torch.zeros(3)),
        "an arena": lambda: kernels.weighted_(
            theta, arenas[0], arenas[1][:200], made, made, torch.zeros(2)
        ),
        "an importance": lambda: kernels.weighted_(theta, *arenas, made, short, torch.zeros(2)),
        "a crooked arena": lambda: kernels.weighted_(
            theta, torch.zeros(400, dtype=torch.uint8)[1:], arenas[1], made, made, torch.zeros(2)
        ),
        "twice live": lambda: kernels.weighted_(theta[1:] * 2, *arenas, made, made, torch.zeros(2)),
        "a backend": lambda: kernels.importance_(theta, theta, s, u, backend="fast"),
    }[what]
    with pytest.raises(ValueError, match=REFUSED[what]):
        step()
