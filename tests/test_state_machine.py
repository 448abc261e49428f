"""Any order of calls, any losses: the merger does what a plain-Python model says.

The model is the reference controller, three lists of tensors (live, anchor, mid) and the formula of
the fusion. Restoring a saved state in new objects is one of the moves.
"""

from __future__ import annotations

import math
import random
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor

from aimmerge_fast import AIMConfig, FastAIMMerger
from aimmerge_fast.controller import BadProbes, MergeRejected
from aimmerge_fast.events import Measure, Open, Probe
from aimmerge_fast.reference.controller import reference_controller
from aimmerge_fast.reference.numerics import fuse, l1_order_p, non_finite
from tests.backends import USABLE
from tests.checkpoints import through_json
from tests.loops import anchor_of, bits
from tests.strategies import protocol_configs

SHAPES: tuple[tuple[tuple[int, ...], torch.dtype], ...] = (
    ((3, 5), torch.float32), ((7,), torch.bfloat16), ((0,), torch.float32), ((2,), torch.float16),
)  # fmt: skip
ORDINARY = st.sampled_from([1.0, 1.0, 1.5, 2.0, 2.5, 9.0, 0.0])
LOSSES = st.one_of(
    ORDINARY,
    st.sampled_from([math.nan, math.inf, -math.inf]),
    st.floats(),
)
SIZES = (0.0, 1e-3, 0.01, 0.25, -0.5, 8.0)
CHANGES = st.sampled_from(SIZES)


class Protocol(RuleBasedStateMachine):
    """``live`` is what the merger works on; everything else here is the model's."""

    @initialize(config=protocol_configs(), backend=st.sampled_from(USABLE))
    def build(self, config: AIMConfig, backend: str) -> None:
        self.config, self.backend = config, backend
        self.noise = torch.Generator().manual_seed(3)
        self.live = [torch.ones(shape).to(dtype).requires_grad_() for shape, dtype in SHAPES]
        self.merger = self.new_merger()
        self.tasks = 0
        self.within = ExitStack()
        self.enter()

    def new_merger(self) -> FastAIMMerger:
        named = [(f"p{index}", tensor) for index, tensor in enumerate(self.live)]
        return FastAIMMerger(named, self.config, backend=self.backend)

    def enter(self) -> None:
        self.within.enter_context(self.merger.task(f"task {self.tasks}"))
        self.model = reference_controller(self.config, task=self.tasks)
        self.anchor = self.copy()
        self.mid: list[Tensor] | None = None
        self.alphas, self.bad, self.code, self.is_open = (1.0, 0.0), 0, "", False

    def copy(self) -> list[Tensor]:
        return [tensor.detach().flatten().clone() for tensor in self.live]

    def change(self, size: float) -> None:
        with torch.no_grad():
            for tensor in self.live:
                noise = torch.randn(tensor.shape, generator=self.noise)
                tensor.add_((size * noise).to(tensor.dtype))

    def last(self, kind: type[Any]) -> Any:
        return next(event for event in reversed(self.merger.events) if isinstance(event, kind))

    @property
    def monitors(self) -> bool:
        return self.config.schedule == "monitor"

    # ---- moves ---------------------------------------------------------------------------------

    @precondition(lambda self: not self.is_open)
    @rule(losses=st.lists(ORDINARY, min_size=8, max_size=30), seed=st.integers(0, 99))
    def train(self, losses: list[float], seed: int) -> None:
        """Many updates, and every merge that is due."""
        draw = random.Random(seed)
        for loss in losses:
            self.step(loss, draw.choice(SIZES))
            if self.code.startswith("merge_") or self.code == "measure":
                self.open()
                if self.is_open and not self.monitors:
                    self.memory_step(draw.choice(SIZES))
                if self.is_open:
                    self.close()

    @precondition(lambda self: not self.is_open)
    @rule(loss=LOSSES, size=CHANGES)
    def step(self, loss: float, size: float) -> None:
        self.change(size)
        self.merger.observe(torch.tensor(loss, dtype=torch.float64))
        self.code = self.model.observe(loss)
        self.bad = 0 if math.isfinite(loss) else self.bad + 1
        if self.bad >= self.config.max_bad_probes:
            self.bad, self.code = 0, ""
            with pytest.raises(BadProbes):
                self.merger.due()
            return
        due = self.code.startswith("merge_") or self.code == "measure"
        assert self.merger.due() == due
        probe = self.last(Probe)
        got = (probe.step, probe.t, probe.S, probe.F, probe.threshold, probe.code)
        model = self.model
        assert got == (model.step, model.t, model.S, model.F, model.threshold, self.code)

    @precondition(lambda self: not self.is_open and self.model.t > 0)
    @precondition(lambda self: not self.monitors or self.code == "measure")
    @rule()
    def open(self) -> None:
        bad = non_finite(self.copy())
        steps = self.model.memory_steps
        self.mid, self.is_open = self.copy(), True
        if not bad:
            assert self.merger.open_merge() == steps
            merge = self.model.merge(l1_order_p(self.mid, self.anchor))
            self.alphas = merge["alpha1"], merge["alpha2"]
            self.compare(merge)
        else:
            self.model.reject()
            self.mid, self.alphas = self.anchor, (1.0, 0.0)
            if self.config.on_reject == "raise":
                self.is_open = False
                with pytest.raises(MergeRejected, match=f"{bad} entries of theta_j"):
                    self.merger.open_merge()
            else:
                assert self.merger.open_merge() == steps
            assert bits(self.live) == bits(self.anchor)
        self.code = ""

    def compare(self, merge: dict[str, Any]) -> None:
        if merge["kind"] == "measure":
            event = self.last(Measure)
            assert (event.t, event.l1) == (merge["S_actual"], merge["delta_l1"])
            assert event.learning_signal == merge["lambda"]
            return
        event = self.last(Open)
        names = {"S_actual": "t", "delta_l1": "l1", "lambda": "learning_signal",
                 "alpha1": "alpha_new", "alpha2": "alpha_past"}  # fmt: skip
        for name, value in merge.items():
            if name != "change_factor":
                assert getattr(event, names.get(name, name)) == value, name

    @precondition(lambda self: self.is_open and not self.monitors)
    @rule(size=CHANGES)
    def memory_step(self, size: float) -> None:
        self.change(size)

    @precondition(lambda self: not self.monitors and self.model.step % 3 == 0)
    @rule(where=st.integers(0, 14), value=st.sampled_from([math.nan, math.inf, -math.inf]))
    def poison(self, where: int, value: float) -> None:
        """Memory steps may explode, and so may training."""
        with torch.no_grad():
            self.live[0].view(-1)[where] = value

    @precondition(lambda self: self.is_open)
    @rule()
    def close(self) -> None:
        assert self.mid is not None
        triples = zip(self.anchor, self.mid, self.copy(), strict=True)
        fused = [fuse(a, j, m, *self.alphas) for a, j, m in triples]
        self.is_open, bad = False, non_finite(fused)
        if bad and self.config.on_reject == "raise":
            with pytest.raises(MergeRejected, match=f"at close, {bad} entries"):
                self.merger.close_merge()
        else:
            self.merger.close_merge()
        self.anchor = self.mid if bad else fused
        assert bits(self.live) == bits(self.anchor)

    @rule()
    def rollback(self) -> None:
        self.merger.rollback()
        if not self.is_open:
            self.model.reject()  # the interval begins anew
        self.is_open, self.code = False, ""
        assert bits(self.live) == bits(self.anchor)

    @rule(json=st.booleans())
    def restore(self, json: bool) -> None:
        """The process dies; another one goes on from the state and the weights."""
        saved = self.merger.state_dict()
        values = self.copy()
        self.live = [
            value.view(tensor.shape).clone().requires_grad_()
            for value, tensor in zip(values, self.live, strict=True)
        ]
        seen = self.merger.events
        self.merger = self.new_merger()
        self.merger.load_state_dict(through_json(saved) if json else saved)
        self.within = ExitStack()
        self.within.enter_context(self.merger.task(f"task {self.tasks}"))
        assert self.merger.events == []
        self.merger.events.extend(seen)

    @precondition(lambda self: not self.is_open and not non_finite(self.copy()))
    @precondition(lambda self: self.model.step > 20)
    @rule()
    def next_task(self) -> None:
        self.within.close()
        self.tasks += 1
        self.enter()

    @rule()
    def wrong_call(self) -> None:
        if self.is_open:
            calls = [self.merger.open_merge, self.merger.due, lambda: self.merger.observe(ONE)]
        else:
            calls = [self.merger.close_merge, self.merger.due]
            calls += [self.merger.open_merge] if self.model.t == 0 else []
        for call in calls:
            with pytest.raises(RuntimeError):
                call()

    @invariant()
    def anchor_is_the_model_s(self) -> None:
        if not self.is_open:
            assert bits(anchor_of(self.merger)) == bits(self.anchor)
        assert non_finite(anchor_of(self.merger)) == 0

    @invariant()
    def counts_are_the_model_s(self) -> None:
        host = self.merger.controller.host
        assert (host.S, host.steps) == (self.model.S, self.model.step)
        assert host.t == self.model.t


ONE = torch.tensor(1.0)

TestProtocol = Protocol.TestCase
TestProtocol.settings = settings(
    max_examples=2 * settings().max_examples, stateful_step_count=50, deadline=None
)
