"""What goes wrong on the device is raised where the host can go on, however late it is seen."""

from __future__ import annotations

import math

import pytest
import torch

from aimmerge_fast import AIMConfig, FastAIMMerger, kernels
from aimmerge_fast.controller import BadProbes, MergeRejected
from aimmerge_fast.events import Close, Open, Reject, to_json
from tests.late_device import LateEngine, Rig
from tests.loops import net

NEVER = 1 << 30


def anchored(rig: Rig) -> bool:
    views = kernels.arena_views(rig.anchor, rig.live)
    return all(torch.equal(x, a) for x, a in zip(rig.live, views, strict=True))


def observe_and_decide(rig: Rig, loss: float) -> bool:
    rig.train()
    rig.controller.observe(torch.tensor(loss))
    return rig.controller.due()


def plant(rig: Rig, value: float) -> None:
    rig.late.enqueue(lambda: rig.live[1].__setitem__(4, value))


@pytest.mark.parametrize("lag", [0, 1, NEVER])
def test_a_rejected_snapshot_is_raised_by_close(lag: int) -> None:
    """Open cannot know yet; live goes back to the anchor, and the next interval is a whole one."""
    rig = Rig(AIMConfig(schedule="fixed", s_init=3), lag)
    for step in range(3):
        if step == 2:
            plant(rig, math.inf)
        merges = observe_and_decide(rig, 1.0)
    assert merges
    assert rig.controller.open() == 1
    rig.train()
    with pytest.raises(MergeRejected, match="step 3: the merge was rejected at open, 1 entries"):
        rig.controller.close()
    rig.late.finish()
    assert anchored(rig)
    assert [observe_and_decide(rig, 1.0) for _ in range(3)] == [False, False, True]
    rig.merge()
    rig.late.finish()
    assert anchored(rig)
    rig.controller.drain()
    kinds = [type(event) for event in rig.events if isinstance(event, (Open, Reject, Close))]
    assert kinds == [Reject, Close, Open, Close]


def test_continuing_after_rejections_does_not_depend_on_lag() -> None:
    """Theta_j or the memory steps' result is not finite, at every second merge."""
    config = AIMConfig(schedule="fixed", s_init=3, on_reject="continue", policy="released")

    def run(lag: int | None) -> tuple[list[str], tuple[bytes, ...]]:
        rig = Rig(config, lag)
        post = rig.late.enqueue if lag is not None else lambda op: op()
        for step in range(36):
            rig.train()
            if step % 6 == 5:
                post(lambda: rig.live[0].__setitem__(0, math.nan))
            rig.controller.observe(torch.tensor(1.0))
            if rig.controller.due():
                rig.controller.open()
                if step % 12 == 8:
                    post(lambda: rig.live[1].__setitem__(3, -math.inf))
                rig.train()
                rig.controller.close()
        bits = rig.bits()  # once all records have arrived
        return [to_json(event) for event in rig.events], bits

    prompt = run(None)
    assert sum('"reject"' in line for line in prompt[0]) == 9
    for lag in (0, 3, NEVER):
        assert run(lag) == prompt


def test_bad_probes_are_never_raised_inside_a_merge() -> None:
    config = AIMConfig(schedule="fixed", s_init=4, max_bad_probes=3)
    rig = Rig(config, NEVER)
    losses = [1.0, math.nan, math.inf, math.nan]
    assert [observe_and_decide(rig, loss) for loss in losses] == [False, False, False, True]
    rig.merge()  # the records arrive here, and the merge is made whole
    assert not rig.controller.is_open
    with pytest.raises(BadProbes, match="step 4: the last 3 history losses were not finite"):
        observe_and_decide(rig, 1.0)
    assert observe_and_decide(rig, 1.0) is False
    rig.late.finish()
    rig.controller.finish_records()
    rig.controller.drain()
    assert int(kernels.read_state(rig.state)["state"]["t"]) == rig.controller.host.t == 2


def test_ten_bad_probes_in_a_row_raise_and_nine_do_not() -> None:
    rig = Rig(AIMConfig(schedule="single"), lag=None)
    for _ in range(2):
        for _ in range(9):
            observe_and_decide(rig, math.nan)
        observe_and_decide(rig, 1.0)
    for _ in range(9):
        observe_and_decide(rig, -math.inf)
    with pytest.raises(BadProbes, match=r"step 30: the last 10 .* newest is -inf"):
        observe_and_decide(rig, -math.inf)
    assert observe_and_decide(rig, math.nan) is False  # counted anew


def test_an_abandoned_merge_leaves_no_rejection_behind() -> None:
    rig = Rig(AIMConfig(schedule="fixed", s_init=2), NEVER)
    for _ in range(2):
        observe_and_decide(rig, 1.0)
    plant(rig, math.nan)
    rig.controller.open()
    rig.controller.restart_interval()
    for _ in range(2):
        observe_and_decide(rig, 1.0)
    rig.merge()
    rig.late.finish()
    assert anchored(rig)


@pytest.mark.parametrize("lag", [0, NEVER])
def test_a_task_begins_with_a_clean_slate(lag: int) -> None:
    """Whatever the last task left in flight: a probe, an open merge, a rejection."""
    rig = Rig(AIMConfig(schedule="fixed", s_init=2), lag)
    for _ in range(2):
        observe_and_decide(rig, math.nan)
    plant(rig, math.nan)
    rig.controller.open()
    rig.controller.begin_task("next", 1)
    assert not rig.controller.is_open
    assert [observe_and_decide(rig, 1.0) for _ in range(2)] == [False, True]
    assert rig.merge() == 1
    rig.controller.finish_records()
    rig.controller.drain()
    assert isinstance(rig.events[-1], Close)
    assert {event.task for event in rig.events[-4:]} == {"next"}


def late_merger(config: AIMConfig) -> FastAIMMerger:
    """A merger whose device works only while the host waits for it."""
    merger = FastAIMMerger(net(), config)
    late = LateEngine(merger.controller._engine, NEVER)
    merger.controller._engine = late
    merger.controller.mailbox._check_device = late.finish
    return merger


def test_bad_probes_that_arrive_at_the_end_of_a_task_are_raised_there() -> None:
    merger = late_merger(AIMConfig(schedule="single", max_bad_probes=3))

    def train() -> None:
        with merger.task("task"):
            for _ in range(4):
                merger.observe(torch.tensor(math.nan))
                assert merger.due() is False

    with pytest.raises(BadProbes, match="step 3: the last 3 history losses"):
        train()
    with merger.task("next"):
        pass


def test_what_is_still_to_be_raised_is_part_of_the_state() -> None:
    """state_dict() reads the records that say so, and raises nothing itself."""
    config = AIMConfig(schedule="single", max_bad_probes=3)
    merger = late_merger(config)
    with merger.task("task"):
        for _ in range(3):
            merger.observe(torch.tensor(math.nan))
            merger.due()
        saved = merger.state_dict()
        merger.controller.bad_probes = None
    again = FastAIMMerger(net(), config)
    again.load_state_dict(saved)
    with again.task("task"):
        again.observe(torch.tensor(1.0))
        with pytest.raises(BadProbes, match="step 3: the last 3 history losses"):
            again.due()


def test_a_rejection_that_is_still_to_be_raised_is_part_of_the_state() -> None:
    model, config = net(), AIMConfig()
    merger = late_merger(config)
    with merger.task("task"):
        merger.observe(torch.tensor(1.0))
        merger.due()
        merger.open_merge()
        with torch.no_grad():
            merger.binding.parameters.tensors()[0].fill_(math.nan)
        saved = merger.state_dict()  # the device opens only now
        merger.rollback()
    again = FastAIMMerger(model, config)
    again.load_state_dict(saved)
    refusal = pytest.raises(MergeRejected, match="step 1: the merge was rejected at open, 60")
    with again.task("task"), refusal:
        again.close_merge()
