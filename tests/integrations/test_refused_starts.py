"""A training that does not begin: what is wrong is said, and no file has changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from aimmerge_fast import RehearsalMemory
from tests.integrations import trainers
from tests.integrations.resumable import whole_folder
from tests.integrations.trainers import callback, made, remembered, tokenised

pytestmark = [pytest.mark.filterwarnings(noise) for noise in trainers.NOISE]
SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "save_total_limit": 3}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    trainers.trained(callback(), folder, **SAVING)
    return folder


def holding(*rows: dict[str, Any]) -> RehearsalMemory:
    memory = RehearsalMemory(ratio=1.0)
    memory.add("earlier", list(rows))
    return memory


def refused(aim: Any, folder: Path, message: str, task: str = "now", resume: Any = None) -> None:
    before, listed = whole_folder(folder), sorted(folder.rglob("*"))
    trainer = made(aim, folder, **SAVING)
    callbacks = [*trainer.callback_handler.callbacks]
    aim.attach(trainer, task=task)
    with pytest.raises(ValueError, match=message) as caught:
        trainer.train(resume_from_checkpoint=resume)
    assert "memory=None" not in str(caught.value)
    assert sorted(folder.rglob("*")) == listed
    assert whole_folder(folder) == before
    assert trainer.args.save_total_limit == SAVING["save_total_limit"]
    assert trainer.callback_handler.callbacks == callbacks


# ---- a checkpoint that this is not the continuation of -----------------------------------------

OTHERS: dict[str, tuple[Callable[[], Any], str, str]] = {
    "task": (callback, "then", "the checkpoint is of task 'now', not 'then'"),
    "memory": (lambda: callback(remembered(seed=2)), "now", "the memory differs from the one"),
    "config": (lambda: callback(s_init=3), "now", "s_init"),
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("step", [2, 4])
def test_another_training_is_not_gone_on_with(run: Path, step: int, other: str) -> None:
    make, task, message = OTHERS[other]
    refused(make(), run, message, task, str(run / f"checkpoint-{step}"))


def test_a_task_that_began_without_a_memory(tmp_path: Path) -> None:
    first = callback(RehearsalMemory(ratio=0.5))
    trainers.trained(first, tmp_path, **SAVING)
    message = "was saved with an empty memory, and this one has 15 records; add them after"
    refused(callback(), tmp_path, message, resume=str(tmp_path / "checkpoint-2"))


def test_a_memory_that_no_checkpoint_can_hold(tmp_path: Path) -> None:
    rows = [
        {name: torch.tensor(row[name]) for name in ("input_ids", "labels")} for row in tokenised(8)
    ]
    trainers.trained(callback(holding(*rows)), tmp_path, **SAVING)
    message = "with a memory of records that a checkpoint cannot hold; add the same records"
    empty = callback(RehearsalMemory(ratio=1.0))
    refused(empty, tmp_path, message, resume=str(tmp_path / "checkpoint-2"))


# ---- a memory that a training cannot begin with ------------------------------------------------


def test_an_empty_memory_after_the_first_task(run: Path) -> None:
    aim = callback(RehearsalMemory(ratio=0.5))
    aim.tasks_done = 1
    message = (
        r"'then': the memory is empty .* memory\.add\(name, trainer\.train_dataset\) after each"
    )
    refused(aim, run, message, task="then")


def test_rows_that_the_trainer_would_have_to_tokenise(run: Path) -> None:
    message = (
        r"a record of the memory has 'text', and .* made of 'input_ids', 'labels'; "
        r".*memory\.add\(name, trainer\.train_dataset\)"
    )
    refused(callback(holding(*trainers.texts(8, seed=1))), run, message)
    refused(callback(holding(*[{}] * 8)), run, "a record of the memory has no columns, and")


# ---- what is said when it is attached ----------------------------------------------------------


def test_an_output_dir_of_another_task(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    aim = callback()
    aim.attach(made(aim, run, **SAVING), task="now")
    assert caplog.messages == []
    aim.attach(made(aim, run, **SAVING), task="then")
    (said,) = caplog.messages
    assert f"{run} holds checkpoints of task 'now', and 'then' is attached" in said
    assert "give every task an output_dir of its own" in said


class Stream(torch.utils.data.IterableDataset[Any]):
    def __len__(self) -> int:
        return 8

    def __iter__(self) -> Any:
        return iter(tokenised(8).select_columns(["input_ids", "labels"]))


DATASETS: dict[str, Callable[[], Any]] = {
    "of datasets": lambda: tokenised(8).to_iterable_dataset(),
    "of torch": Stream,
}


@pytest.mark.parametrize("kind", DATASETS)
def test_a_dataset_without_places(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset, memory = DATASETS[kind](), RehearsalMemory(ratio=0.5)
    aim = callback(memory)
    trainer = made(aim, tmp_path, extra={"train_dataset": dataset}, max_steps=2)
    caplog.clear()
    aim.attach(trainer, task="now")
    (said,) = caplog.messages
    assert f"train_dataset is a {type(dataset).__name__}, and memory.add takes a sequence" in said
    with pytest.raises((ValueError, NotImplementedError)):
        memory.add("now", dataset)
    code = said.partition("sequence: ")[2].partition(" after")[0]
    names = {"memory": memory, "name": "now", "trainer": trainer, "n": 8}
    exec(f"import itertools\n{code}", names)
    assert len(memory) == 4


def test_datasets_with_places(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for dataset in (tokenised(8), [*tokenised(8)], datasets.Dataset.from_list([{"a": 1}])):
        aim = callback()
        trainer = made(aim, tmp_path, extra={"train_dataset": dataset})
        caplog.clear()
        aim.attach(trainer, task="now")
        assert caplog.messages == []
