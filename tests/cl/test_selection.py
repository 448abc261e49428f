"""``select='best'``: the state with the lowest dev loss of the seen tasks."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from aimmerge_fast.cl import runner, selection
from aimmerge_fast.cl.context import Context
from aimmerge_fast.cl.methods import Trainee
from aimmerge_fast.cl.plain import train_singles
from aimmerge_fast.cl.selection import Best, dev_loss
from aimmerge_fast.cl.training import new_optimizer
from aimmerge_fast.durable.tree import load_tree
from tests.cl.tiny import finished_run, make_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory)


@pytest.fixture
def context(folder: Path) -> Context:
    return runner.prepare(make_config(folder, select="best", select_items=5, dropout=0.5))


@pytest.fixture
def trainee(context: Context) -> Trainee:
    model = context.attach_adapter(1)
    parameters = [p for p in model.parameters() if p.requires_grad]
    with torch.no_grad():
        for parameter in parameters:  # an adapter that acts
            parameter.add_(torch.linspace(-0.3, 0.3, parameter.numel()).view_as(parameter))
    return Trainee(
        model=model,
        optimizer=new_optimizer(parameters, 0.1),
        encoder=context.encoder,
        loss=context.loss,
        memory=context.new_memory(1),
        config=context.config,
        seed=1,
        emit=lambda event: None,
        device=context.ranks.device,
    )


def test_the_dev_loss_by_hand(context: Context, trainee: Trainee) -> None:
    """Mean over the answer tokens of 5 records of each task, one record at a time."""
    total, tokens = 0.0, 0
    trainee.model.eval()
    for task in context.tasks:
        for record in random.Random(42).sample(task.dev, 5):
            prompt, answer = context.encoder.encode(record)
            with torch.no_grad():
                logits = trainee.model(input_ids=torch.tensor([prompt + answer])).logits[0]
            predicted = logits[len(prompt) - 1 : -1]
            total += float(F.cross_entropy(predicted, torch.tensor(answer), reduction="sum"))
            tokens += len(answer)
    trainee.model.train()
    found = dev_loss(trainee, context.tasks)
    assert found == pytest.approx(total / tokens, rel=1e-5)
    assert trainee.model.training  # and dropout is back
    assert dev_loss(trainee, context.tasks) == found  # it was off
    assert dev_loss(trainee, context.tasks[:1]) != found


def test_no_dev_records(context: Context, trainee: Trainee) -> None:
    context.tasks[0].dev.clear()
    with pytest.raises(ValueError, match="select='best' needs dev records; no task has any"):
        dev_loss(trainee, context.tasks[:1])


def test_a_run_without_dev_records_is_refused(folder: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / "data" / split).mkdir(parents=True)
        for task in ("first", "second"):
            source = folder / "data" / split / f"{task}_T5.json"
            (tmp_path / "data" / split / source.name).write_text(source.read_text())
    config = make_config(
        folder, data=tmp_path / "data", out=tmp_path / "out", select="best", variant="faithful"
    )
    with pytest.raises(ValueError, match="select='best' needs dev records"):
        runner.run(config)


def offered(trainee: Trainee, context: Context, losses: list[float], mp: Any) -> Best:
    best = Best(trainee, context.ranks)
    coming = iter(losses)
    mp.setattr(selection, "dev_loss", lambda *args: next(coming))
    for step in range(1, len(losses) + 1):
        with torch.no_grad():
            for parameter in trainee.parameters():
                parameter.fill_(step)
        best.offer(context.tasks, step)
    return best


@pytest.mark.parametrize(
    ("losses", "step"),
    [([3.0, 1.0, 2.0], 2), ([1.0, 1.0, 1.0], 1), ([3.0, 2.0, 1.0], 3), ([2.0, 1.0, 1.0], 2)],
)
def test_the_lowest_is_restored(
    context: Context,
    trainee: Trainee,
    monkeypatch: pytest.MonkeyPatch,
    losses: list[float],
    step: int,
) -> None:
    """A later state must be strictly lower."""
    best = offered(trainee, context, losses, monkeypatch)
    assert (best.step, best.loss) == (step, min(losses))
    again = Best(trainee, context.ranks)
    again.load_state_dict(best.state_dict())
    for one in (best, again):
        with torch.no_grad():
            for parameter in trainee.parameters():
                parameter.fill_(9)
        one.restore()
        assert all(bool((parameter == step).all()) for parameter in trainee.parameters())


def test_nothing_offered_leaves_the_last_state(
    context: Context, trainee: Trainee, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = offered(trainee, context, [1.0, 2.0], monkeypatch)
    best.reset()
    best.restore()
    assert all(bool((parameter == 2).all()) for parameter in trainee.parameters())
    assert best.state_dict() == {"loss": None, "step": 0, "tensors": []}


def test_a_run_ends_each_stage_in_its_best_state(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int, float, list[torch.Tensor]]] = []
    original = Best.offer

    def offer(self: Best, tasks: Any, step: int) -> None:
        original(self, tasks, step)
        adapter = [p.detach().clone() for p in self._trainee.parameters()]
        seen.append((len(tasks), step, dev_loss(self._trainee, tasks), adapter))

    monkeypatch.setattr(Best, "offer", offer)
    config = make_config(
        folder, "seqlora", out=tmp_path / "out", select="best", select_every=2, lr=0.3, steps=8
    )
    runner.run(config)
    assert [(tasks, step) for tasks, step, _, _ in seen] == [
        (tasks, step) for tasks in (1, 2) for step in (2, 4, 6, 8)
    ]
    steps = []
    for number, stage in ((1, "1-first"), (2, "2-second")):
        mine = [row for row in seen if row[0] == number]
        _, step, _, adapter = min(mine, key=lambda row: row[2])
        steps.append(step)
        saved = load_file(config.out / f"seqlora-s42/adapters/{stage}/adapter_model.safetensors")
        assert sum(t.double().sum() for t in saved.values()) == pytest.approx(
            float(sum(t.double().sum() for t in adapter)), abs=1e-9
        )
        last = float(sum(t.double().sum() for t in mine[-1][3]))
        assert step == 8 or last != float(sum(t.double().sum() for t in adapter))
    assert min(steps) < 8  # else the test says nothing


@pytest.mark.parametrize("text", ["single", "aim:merge_at_task_end=true", "aim:schedule=single"])
def test_a_merge_at_the_end_would_be_lost(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"arm .*merge at a task's end.*use select='last'"):
        runner.run(make_config(tmp_path, text, select="best"))
    runner.check_arms(make_config(tmp_path, text))
    runner.check_arms(make_config(tmp_path, "aim:merge_at_task_end=false", select="best"))


def test_a_task_alone_ends_in_its_best_state(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the first stage of an arm, which trains the same."""
    losses = itertools.cycle([3.0, 1.0, 2.0, 4.0])  # of updates 2, 4, 6 and 8
    monkeypatch.setattr(selection, "dev_loss", lambda *args: next(losses))
    fields: dict[str, Any] = {"select": "best", "select_every": 2, "lr": 0.3, "steps": 8}
    config = make_config(folder, "seqlora", out=tmp_path / "out", single=True, **fields)
    (entry,) = runner.run(config)["arms"]
    assert entry["single"][0] == entry["scores"][0][0]
    saved = load_file(config.out / "seqlora-s42/adapters/1-first/adapter_model.safetensors")
    state = load_tree(next(config.out.glob("plain/first-s42-*/state.safetensors")))
    assert state["best"]["step"] == 4
    alone = {k.replace(".default.weight", ".weight"): t for k, t in state["adapter"].items()}
    assert alone.keys() == saved.keys()
    assert all(torch.equal(alone[name], saved[name]) for name in saved)


def test_a_task_alone_without_dev_records_ends_in_its_last_state(
    folder: Path, tmp_path: Path
) -> None:
    fields: dict[str, Any] = {"select": "best", "select_every": 2}
    context = runner.prepare(make_config(folder, out=tmp_path / "out", single=True, **fields))
    context.tasks[1].dev.clear()
    runner.claim(context.config.out, context)
    train_singles(context, 42)
    state = load_tree(next(context.config.out.glob("plain/second-s42-*/state.safetensors")))
    assert state["best"] == {"loss": None, "step": 0, "tensors": []}
