"""What the arms of bench/training_overhead.py train on, and what one block of them tells."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from training import arms, blocks, check, engine, ours
from training import released as theirs
from training.arms import Arm, Matched, Mixed, Setup, Used
from training.data import Order, share
from training.settings import RECORDS, Settings, defaults

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def small() -> Setup:
    return arms.set_up_small("llama2-7b", check._SMALL, CPU)


@dataclasses.dataclass
class Seen:
    """Batches that went through the model with a gradient, and without."""

    trained: list[Tensor] = dataclasses.field(default_factory=list)
    probed: list[Tensor] = dataclasses.field(default_factory=list)


@pytest.fixture
def seen(small: Setup) -> Iterator[Seen]:
    noted = Seen()

    def note(_: Any, __: Any, inputs: dict[str, Tensor]) -> None:
        (noted.trained if torch.is_grad_enabled() else noted.probed).append(inputs["input_ids"])

    handle = small.model.register_forward_pre_hook(note, with_kwargs=True)
    yield noted
    handle.remove()


def batches(kind: type[Arm], setup: Setup, seen: Seen) -> tuple[list[Tensor], list[Tensor], Used]:
    """What one block showed to the model in training and in probing, and what it says it used."""
    setup.reset()
    arm = kind(setup)
    arm.warm_up()
    with arm.task():
        arm.used = Used()
        seen.trained.clear()
        seen.probed.clear()
        for number in range(setup.settings.steps):
            arm.step(number)
        return [*seen.trained], [*seen.probed], arm.used


def test_arms_train_on_the_same_batches(small: Setup, seen: Seen) -> None:
    batch, bank = small.settings.batch, small.bank
    expected = [bank.batch(small.order.at(n))["input_ids"] for n in range(small.settings.steps)]
    memory = {tuple(bank.batch([r])["input_ids"][0].tolist()) for r in small.memory_row_numbers}

    def rehearsed(rows: Tensor) -> bool:
        return all(tuple(row.tolist()) in memory for row in rows)

    for kind in (Arm, Matched, theirs.Released, theirs.ReleasedLean, ours.Ours):
        trained, probed, used = batches(kind, small, seen)
        of_task = [rows for rows in trained if not rehearsed(rows)]
        first = [rows[:batch] for rows in of_task]
        assert all(torch.equal(*pair) for pair in zip(first, expected, strict=True))
        extra = [rows[batch:] for rows in of_task] + [r for r in trained if rehearsed(r)]
        assert all(rehearsed(rows) for rows in [*extra, *probed])
        assert sum(map(len, extra)) == used.memory_rows
        assert sum(map(len, probed)) == used.history_rows
        assert used.task_rows == [row for n in range(len(expected)) for row in small.order.at(n)]


def test_matched_replay_rehearses_as_much_as_aim(small: Setup, seen: Seen) -> None:
    aim, matched = (batches(kind, small, seen)[2] for kind in (ours.Ours, Matched))
    assert (aim.history_rows, aim.memory_rows) == (3 * 12, 5 * 6)
    assert matched.memory_rows == aim.history_rows / 2 + aim.memory_rows == 48


def test_mixed_epoch_holds_every_row_once(small: Setup) -> None:
    arm = Mixed(small)
    assert arm.stretch == 1.02
    rows = [row for n in range(1020 // 4) for row in arm._order.at(n)]
    assert sorted(rows) == sorted([*range(RECORDS), *small.memory_row_numbers])
    mixed = next(n for n in range(255) if max(arm._order.at(n)) >= RECORDS)
    arm.step(mixed)
    assert arm.used.memory_rows + len(arm.used.task_rows) == small.settings.batch
    assert arm.used.memory_rows == sum(row >= RECORDS for row in arm._order.at(mixed))


def test_order_reshuffles_every_epoch() -> None:
    order = Order(range(10), 4, seed=1)
    rows = [row for n in range(5) for row in order.at(n)]
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10))
    assert rows[:10] != rows[10:]
    assert order.at(1) == Order(range(10), 4, seed=1).at(1)


def test_share_adds_up() -> None:
    assert [share(n, 2.25) for n in range(4)] == [2, 2, 2, 3]
    assert sum(share(n, 0.16) for n in range(100)) == 16


def test_rows_of_equal_batches_are_the_memory_rows() -> None:
    chosen = dict.fromkeys(("history_rows", "memory_rows"), 8)
    settings = Settings(**{**defaults(CPU, quick=False), **chosen, "layers": 2})
    assert settings.matched_rows == 8
    assert dataclasses.replace(settings, history_rows=4).matched_rows == 6
    assert dataclasses.replace(settings, past_tasks=3).mixed_stretch == 1.06


# ---- one block -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", blocks.ARMS)
def test_repeats_of_an_arm_end_in_the_same_bits(small: Setup, kind: type[Arm]) -> None:
    first, second = (blocks.timed(kind, small, repeat) for repeat in range(2))
    assert first.theta == second.theta
    assert first.wall > 0
    assert first.events is None
    assert (first.engine_seconds > 0) == (kind is ours.Ours)


def test_timed_config_holds_the_interval_and_clips(small: Setup) -> None:
    config = ours.config(small.settings, "before")
    assert (config.policy, config.schedule, config.probe) == ("paper", "adaptive", "before")
    assert (config.s_min, config.s_init, config.s_max) == (2, 2, 2)
    assert (config.history_batch, config.memory_batch) == (3, 5)
    assert (config.max_grad_norm, config.memory_optimizer) == (1.0, "shared")


def test_engine_alone(small: Setup) -> None:
    alone = engine.measure(small, 0.0)
    assert min(alone.hook, alone.merge, alone.per_step) > 0


class Waiting:
    """A merger that waits for every second decision."""

    waits = 0
    observed = 0

    def observe(self, _: Tensor) -> None:
        self.observed += 1

    def due(self) -> bool:
        self.waits += self.observed % 2
        return False


def test_engine_s_hook_leaves_waits_out() -> None:
    merger: Any = Waiting()
    hooks: list[float] = []
    for _ in range(6):
        engine._step(merger, torch.zeros(()), hooks, [])
    assert (len(hooks), merger.observed) == (3, 6)
