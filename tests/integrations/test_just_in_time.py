"""Checkpoints that the Trainer writes at once when it is told to stop, inside any event."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback
from transformers.trainer_jit_checkpoint import JITCheckpointCallback

from aimmerge_fast.durable import verify
from aimmerge_fast.integrations.transformers import loop_randomness
from tests.integrations.resumable import (
    EPOCH,
    NOISE,
    STEPS,
    Run,
    checkpoint,
    checkpoints,
    content,
    differences,
)

pytestmark = pytest.mark.filterwarnings(NOISE)

#: the event after which nothing that asks for a checkpoint comes before the one it is wanted in
BEFORE = {
    "first step_begin": "epoch_begin",
    "step_begin": "step_end",
    "pre_optimizer_step": "step_begin",
    "step_end": "optimizer_step",
    "epoch_end": "step_end",
}
#: event, updates that are in the checkpoint, updates that are made when it is asked for
CASES = [
    *(("first step_begin", step, step) for step in (0, EPOCH)),
    *(("step_begin", step, step) for step in (1, EPOCH - 1)),
    *(("pre_optimizer_step", step, step) for step in (0, 3, EPOCH - 1, STEPS - 1)),
    *(("step_end", step, step - 1) for step in (4, EPOCH, STEPS)),
    *(("epoch_end", step, step) for step in (EPOCH, STEPS)),
]


@pytest.fixture(autouse=True)
def own_handler() -> Iterator[None]:
    """A Trainer takes SIGTERM when it is made, and gives it back only when it has trained."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def manager(run: Run) -> Any:
    callbacks = run.trainer.callback_handler.callbacks
    return next(c for c in callbacks if isinstance(c, JITCheckpointCallback)).jit_manager


class Ask(TrainerCallback):
    """Wants a checkpoint in the event that follows ``event`` of step ``step``."""

    def __init__(self, event: str, step: int) -> None:
        self.run: Run | None = None
        setattr(self, f"on_{event}", self._ask)
        self._step = step

    def _ask(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.run is not None and state.global_step == self._step:
            manager(self.run).is_checkpoint_requested = True
            self.run = None


def stopped(folder: Path, event: str, step: int, **fields: Any) -> Run:
    """A run that was told to stop in ``event`` and has written its checkpoint."""
    ask = Ask(event, step)
    run = Run(folder, ask, enable_jit_checkpoint=True, **fields)
    ask.run = run
    return run.train()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[int, Run] = {}

    def run(accumulation: int) -> Run:
        if accumulation not in made:
            folder = tmp_path_factory.mktemp("whole")
            made[accumulation] = Run(folder, gradient_accumulation_steps=accumulation).train()
        return made[accumulation]

    return run


@pytest.mark.parametrize(
    ("event", "step", "asked", "accumulation"),
    [(*case, 1) for case in CASES] + [(*case, 2) for case in CASES[3:9:2]],
)
def test_resumed_from_a_checkpoint_inside_any_event(
    event: str, step: int, asked: int, accumulation: int, whole: Any, tmp_path: Path
) -> None:
    fields: dict[str, Any] = {"save_steps": STEPS, "gradient_accumulation_steps": accumulation}
    before = stopped(tmp_path, BEFORE[event], asked, **fields)
    assert checkpoints(tmp_path)[0] == f"checkpoint-{step}"
    assert before.aim.interrupted == "now"
    in_update = event.endswith(("step_begin", "pre_optimizer_step"))
    assert (content(checkpoint(tmp_path, step))["rank0"]["random"] is not None) is in_update
    if step == STEPS - 1:  # the last update is made all the same, and saved as always
        shutil.rmtree(checkpoint(tmp_path))
    run = Run(tmp_path, enable_jit_checkpoint=True, **fields).train(resume=True)
    first = whole(accumulation)
    assert before.events + run.events == first.events
    if step < STEPS:
        mine, theirs = content(checkpoint(tmp_path)), content(checkpoint(first.folder))
        assert differences(mine, theirs) == []
    live = (dict(one.trainer.model.named_parameters()) for one in (run, first))
    assert differences(*live) == []


def test_every_random_state_comes_back() -> None:
    def draw() -> tuple[float, ...]:
        normal = (random.gauss(0, 1), np.random.standard_normal())  # each keeps a second one
        return (*normal, random.random(), np.random.random(), torch.rand(()).item())

    draw()
    states = loop_randomness.to_tree(loop_randomness.take())
    drawn = [draw() for _ in range(3)]
    loop_randomness.put_back(
        json.loads(json.dumps({**states, "cpu": None})) | {"cpu": states["cpu"]}
    )
    assert [draw() for _ in range(3)] == drawn


@pytest.mark.parametrize(("event", "step"), [("step_begin", 4), ("epoch_end", EPOCH)])
def test_a_checkpoint_written_over_a_sealed_one_is_sealed_anew(
    event: str, step: int, whole: Any, tmp_path: Path
) -> None:
    before = stopped(tmp_path, BEFORE[event], step, save_total_limit=1)
    control = (checkpoint(tmp_path, step) / "trainer_state.json").read_text()
    assert '"should_training_stop": true' in control
    assert verify(checkpoint(tmp_path, step))["global_step"] == step
    run = Run(tmp_path, save_total_limit=1).train(resume=checkpoint(tmp_path, step))
    events = before.events[: before.told[step]] + run.events
    assert events == whole(1).events
    mine, theirs = content(checkpoint(tmp_path)), content(checkpoint(whole(1).folder))
    assert differences(mine, theirs) == []


def test_the_one_before_stays_where_the_newest_may_be_written_over(tmp_path: Path) -> None:
    Run(tmp_path, save_total_limit=1, enable_jit_checkpoint=True).train()
    assert checkpoints(tmp_path) == [f"checkpoint-{STEPS - 1}", f"checkpoint-{STEPS}"]


class Terminate(TrainerCallback):
    """SIGTERM to this process after update 3, and time for it to be noticed."""

    def __init__(self) -> None:
        self.run: Run | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3 and self.run is not None:
            os.kill(os.getpid(), signal.SIGTERM)
            until = time.monotonic() + 60
            while not manager(self.run).is_checkpoint_requested and time.monotonic() < until:
                time.sleep(0.001)


def test_a_true_sigterm(whole: Any, tmp_path: Path) -> None:
    terminate = Terminate()
    before = Run(tmp_path, terminate, enable_jit_checkpoint=True, save_steps=STEPS)
    manager(before).kill_wait = 0.01
    terminate.run = before
    before.train()
    assert checkpoints(tmp_path) == ["checkpoint-3"]
    run = Run(tmp_path, save_steps=STEPS).train(resume=True)
    assert before.events + run.events == whole(1).events
    mine, theirs = content(checkpoint(tmp_path)), content(checkpoint(whole(1).folder))
    assert differences(mine, theirs) == []


def test_a_run_that_was_told_to_stop_while_it_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The checkpoint is not sealed, and the one before it is taken."""

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("aimmerge_fast.integrations.transformers.checkpoints.seal", killed)
        with pytest.raises(KeyboardInterrupt):
            stopped(tmp_path, "step_end", 4, save_steps=STEPS)
    assert checkpoints(tmp_path) == ["checkpoint-4"]
    Run(tmp_path)
    assert checkpoints(tmp_path) == []
    assert "checkpoint-4 cannot be resumed" in caplog.text
    assert (tmp_path / "_broken-checkpoint-4").is_dir()
