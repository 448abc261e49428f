"""SeqLoRA, LoRAReplay and MTL: what they train on."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from aimmerge_fast.cl.encode import batch_at
from aimmerge_fast.cl.methods import METHODS, Stage, method_class
from tests.cl.bare import FIRST, SECOND, bench, task, train
from tests.cl.tiny import make_config


def ids(records: Any) -> list[str]:
    return [record["id"] for record in records]


def test_every_method_has_a_class_with_a_label_and_a_line() -> None:
    classes = {name: method_class(name) for name in METHODS}
    assert len({kind.label for kind in classes.values()}) == len(METHODS)
    assert all(kind.label and kind.summary for kind in classes.values())


def test_an_unknown_method_is_told_the_known() -> None:
    with pytest.raises(ValueError, match=r"unknown method 'klf'; did you mean 'kif'\?.*tasl"):
        method_class("klf")
    with pytest.raises(ValueError, match=r"unknown method 'nosuch'\. The methods are seqlora"):
        method_class("nosuch")


def test_seqlora_trains_on_the_task_alone() -> None:
    work = bench()
    method = work.method("seqlora")
    train(method, FIRST, 0, 1)
    pool = method.training_records(Stage("second", (SECOND,)), 1)
    assert ids(pool) == ids(SECOND.train)
    with pytest.raises(ValueError, match="settings are none"):
        method_class("seqlora").check({"lambda": 1}, work.trainee.config)


def test_replay_has_every_memory_record_once_an_epoch() -> None:
    """D_k and M_<k; 40 + 8 records are 12 batches of 4."""
    work = bench()
    method = work.method("replay")
    train(method, FIRST, 0, 1)
    pool = method.training_records(Stage("second", (SECOND,)), 1)
    kept = ids(work.trainee.memory.stream("other").draw(8))
    assert len(pool) == 48
    assert Counter(ids(pool)) == Counter(ids(SECOND.train) + kept)
    for epoch in range(2):
        steps = range(12 * epoch + 1, 12 * epoch + 13)
        seen = [name for step in steps for name in ids(batch_at(pool, step, 4, "key"))]
        assert Counter(seen) == Counter(ids(pool))


def test_replay_of_the_first_task_is_plain() -> None:
    work = bench()
    method = work.method("replay")
    assert ids(method.training_records(Stage("first", (FIRST,)), 0)) == ids(FIRST.train)


def test_mtl_trains_all_tasks_in_one_stage() -> None:
    work = bench()
    tasks = [FIRST, SECOND, task("third", 3)]
    (stage,) = method_class("mtl").stages(tasks)
    assert (stage.name, [t.name for t in stage.tasks]) == ("all", ["first", "second", "third"])
    pool = work.method("mtl").training_records(stage, 0)
    assert Counter(ids(pool)) == Counter(name for t in tasks for name in ids(t.train))
    seen = {
        name.split("-")[0] for step in range(1, 31) for name in ids(batch_at(pool, step, 4, "key"))
    }
    assert seen == {"first", "second", "third"}


def test_mtl_makes_the_updates_of_all_its_tasks(tmp_path: Any) -> None:
    config = make_config(tmp_path)
    assert config.steps_for(80, 2) == 2 * config.steps_for(40)
