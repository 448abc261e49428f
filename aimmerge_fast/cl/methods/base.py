"""What a method is: a few hooks around stage, batch and optimiser update."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch

from aimmerge_fast.cl.config import RunConfig
from aimmerge_fast.cl.data import Record, TaskData
from aimmerge_fast.cl.encode import AnswerLoss, Encoder
from aimmerge_fast.cl.expected import Expected
from aimmerge_fast.events import Event
from aimmerge_fast.memory import RehearsalMemory


@dataclasses.dataclass(frozen=True)
class Stage:
    """What is trained in one go: a task, or several at once."""

    name: str
    tasks: tuple[TaskData, ...]

    def records(self) -> list[Record]:
        return [record for task in self.tasks for record in task.train]


@dataclasses.dataclass
class Trainee:
    """What a method works on. One per arm.

    Attributes:
        model: a PeftModel; its base is frozen. optimizer: over ``parameters()``; moments are
            cleared at every stage. encoder, loss: records -> batch -> mean loss of answer tokens.
        memory: records of the finished tasks; the arm adds to it after each stage.
        config: of the run. seed: of the arm. emit: takes events for ``events.jsonl``.
        rows: counts of rows passed through the model, by purpose.
        device: where the model is. signal: takes S and delta, for the progress display.
    """

    model: Any
    optimizer: torch.optim.Optimizer
    encoder: Encoder
    loss: AnswerLoss
    memory: RehearsalMemory
    config: RunConfig
    seed: int
    emit: Callable[[Event], None]
    device: torch.device
    signal: Callable[[int, float | None], None] = lambda interval, threshold: None
    rows: dict[str, int] = dataclasses.field(
        default_factory=lambda: {"training": 0, "memory": 0, "probe": 0}
    )

    def parameters(self) -> list[torch.nn.Parameter]:
        """The trainable parameters, in the model's order."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def collate(self, records: Sequence[Record]) -> dict[str, torch.Tensor]:
        """A batch on the host; ``loss`` moves it, and then has nothing to read back from a GPU."""
        return self.loss.located(self.encoder.collate(records))

    def use_parameters(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Let the optimiser train these from here on, with fresh moments."""
        self.optimizer.param_groups[0]["params"] = list(parameters)
        self.optimizer.state.clear()


class Method:
    """Plain sequential training; methods override what they change.

    A method must be able to stop after any update and go on in another process: what it needs
    for that is in ``state_dict``. The adapters' own tensors and the optimiser are saved by the arm.
    """

    #: One line for people. label: what tables call it.
    summary: ClassVar[str] = ""
    label: ClassVar[str] = ""
    #: Settings and their defaults.
    defaults: ClassVar[Mapping[str, Any]] = {}
    #: The first stage is plain training, so arms can share it.
    first_stage_is_plain: ClassVar[bool] = True
    uses_memory: ClassVar[bool] = False

    def __init__(self, trainee: Trainee, settings: Mapping[str, Any]) -> None:
        self.trainee = trainee
        self.settings = {**self.defaults, **settings}

    @classmethod
    def check(cls, settings: Mapping[str, Any], config: RunConfig) -> None:
        """``ValueError`` for settings that cannot work, before anything is loaded."""
        for name in settings:
            if name not in cls.defaults:
                known = ", ".join(cls.defaults) or "none"
                raise ValueError(f"unknown setting {name!r}; this method's settings are {known}")

    @classmethod
    def stages(cls, tasks: Sequence[TaskData]) -> list[Stage]:
        return [Stage(task.name, (task,)) for task in tasks]

    @classmethod
    def expected(
        cls,
        settings: Mapping[str, Any],
        config: RunConfig,
        seed: int,
        index: int,
        name: str,
        steps: int,
    ) -> Expected:
        """What stage number ``index``, ``name``, of ``steps`` updates will do besides.

        Asked where the stage has a memory.
        """
        return Expected()

    def task(self, stage: Stage, index: int) -> AbstractContextManager[Any]:
        """Around the updates of a stage, which may be the rest of it after a resume."""
        return nullcontext()

    def begin_stage(self, stage: Stage, index: int) -> None:
        """Before a stage's first update; not called again when it is resumed."""

    def training_records(self, stage: Stage, index: int) -> list[Record]:
        """What a stage's batches are drawn from; a pure function of memory and stage."""
        return stage.records()

    def after_backward(self) -> None:
        """Gradients are there (clipped), the update is still to come."""

    def after_update(self) -> None:
        """The optimiser has stepped; gradients are cleared."""

    def end_stage(self, stage: Stage, index: int) -> None:
        """After a stage's last update, before it is evaluated; the memory is without it yet."""

    def state_dict(self) -> dict[str, Any]:
        """JSON values and tensors under string keys."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up ``state_dict``'s; called before ``task()`` is entered again."""

    def prepare(self, state: Mapping[str, Any]) -> None:
        """Give the model the adapters that it had when ``state`` was saved."""

    def merges(self) -> int:
        """Merges so far, for the progress line."""
        return 0

    def close(self) -> None:
        """Leave the model as it was found, but for the values of its adapter."""


class Wrapper(Method):
    """A method around another, ``inner``: every hook is passed on, and some are added to."""

    def __init__(self, inner: Method) -> None:
        super().__init__(inner.trainee, {})
        self.inner = inner

    def task(self, stage: Stage, index: int) -> AbstractContextManager[Any]:
        return self.inner.task(stage, index)

    def begin_stage(self, stage: Stage, index: int) -> None:
        self.inner.begin_stage(stage, index)

    def training_records(self, stage: Stage, index: int) -> list[Record]:
        return self.inner.training_records(stage, index)

    def after_backward(self) -> None:
        self.inner.after_backward()

    def after_update(self) -> None:
        self.inner.after_update()

    def end_stage(self, stage: Stage, index: int) -> None:
        self.inner.end_stage(stage, index)

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.inner.load_state_dict(state)

    def prepare(self, state: Mapping[str, Any]) -> None:
        self.inner.prepare(state)

    def merges(self) -> int:
        return self.inner.merges()

    def close(self) -> None:
        self.inner.close()
