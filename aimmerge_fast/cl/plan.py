"""What a run would do, before it does it: tasks, updates, merges, rehearsal, memory, disk, time."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from aimmerge_fast.cl.ahead import Ahead, ArmPlan
from aimmerge_fast.cl.config import RunConfig
from aimmerge_fast.cl.cost import Speed, count_tokens, load_encoder, matmul_speed
from aimmerge_fast.cl.data import TaskData
from aimmerge_fast.cl.estimate import GIB, Estimate, available
from aimmerge_fast.cl.expected import Span
from aimmerge_fast.cl.model_files import DTYPES
from aimmerge_fast.cl.parallel import Ranks
from aimmerge_fast.cl.prepare import estimate_of, load_tasks
from aimmerge_fast.cl.progress import duration
from aimmerge_fast.cl.report.blocks import Bullets, Section, Table, cells
from aimmerge_fast.cl.report.terminal import show_section
from aimmerge_fast.cl.runner import SETTINGS, VERSION, check_arms
from aimmerge_fast.cl.streams import Stream
from aimmerge_fast.durable.files import read_json

if TYPE_CHECKING:
    from rich.console import Console

_PREDICTION = 300  # bytes on disk, of one
_COPIES = 7  # of an adapter in an arm's state: weights, two moments, what a merger holds, the best


@dataclasses.dataclass(frozen=True)
class TaskPlan:
    """A task of the stream. tokens: mean of a training row with its padding."""

    name: str
    metric: str
    train: int
    dev: int
    test: int
    notes: tuple[str, ...]
    updates: int
    tokens: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """What ``plan`` found.

    Attributes:
        memory: estimated bytes while training. free: bytes on the device. disk: bytes of the run.
        matmul: operations per second, measured. shared_seconds: of plain trainings that arms share
            or ``single`` asks for. problems: what ``run`` would refuse or stumble over.
    """

    stream: str
    label: str | None
    tasks: tuple[TaskPlan, ...]
    arms: tuple[ArmPlan, ...]
    device: str
    memory: Estimate
    free: int
    disk: int
    matmul: float
    shared_seconds: int
    out: str
    problems: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return self.memory.total <= self.free

    @property
    def seconds(self) -> Span:
        """Of the arms that are not finished, one after the other; rough."""
        waiting = [arm.seconds for arm in self.arms if arm.done != "finished"]
        shared = self.shared_seconds if waiting else 0
        return sum(low for low, _ in waiting) + shared, sum(high for _, high in waiting) + shared

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        memory = {**dataclasses.asdict(self.memory), "total": self.memory.total}
        fields = {**dataclasses.asdict(self), "memory": memory}
        found: dict[str, Any] = json.loads(
            json.dumps({**fields, "fits": self.fits, "seconds": self.seconds})
        )
        return found


def plan(config: RunConfig, seconds: float = 0.5) -> Plan:
    """All about the run of ``config`` that can be known without loading weights.

    The speed of this machine is measured for ``seconds``. Errors as of ``run``: settings, records
    and model are checked.
    """
    check_arms(config)
    chosen, tasks = load_tasks(config)
    memory, device = estimate_of(config, tasks), Ranks().device
    encoder, tables = load_encoder(config)
    for task in tasks:
        encoder.check(task.train, task.name)
    rows = config.micro_batch or config.batch
    tokens = {task.name: count_tokens(encoder, task, rows) for task in tasks}
    weights = memory.weights // DTYPES[config.dtype].itemsize
    speed = Speed(matmul_speed(device, config.dtype, seconds=seconds), max(1, weights - tables))
    ahead = Ahead(config, tasks, tokens, speed)
    arms = tuple(ahead.arm(spec, seed) for seed in config.seeds for spec in config.arms)
    disk = _disk(config, tasks, memory.adapter_entries)
    return Plan(
        stream=chosen.name,
        label=chosen.label,
        tasks=tuple(_task(config, task, tokens[task.name].row) for task in tasks),
        arms=arms,
        device=str(device),
        memory=memory,
        free=available(device),
        disk=disk,
        matmul=speed.flops,
        shared_seconds=round(_shared(config, tasks, ahead, arms)),
        out=str(config.out),
        problems=tuple(_problems(config, chosen, tasks, disk)),
    )


def show(found: Plan, console: Console) -> None:
    """As tables."""
    show_section(Section(f"Plan of {found.out}", tuple(_blocks(found))), console)


def _task(config: RunConfig, task: TaskData, tokens: float) -> TaskPlan:
    return TaskPlan(
        name=task.name,
        metric=task.metric,
        train=len(task.train),
        dev=len(task.dev),
        test=len(task.test),
        notes=task.notes,
        updates=config.steps_for(len(task.train)),
        tokens=round(tokens, 1),
    )


def _shared(
    config: RunConfig, tasks: Sequence[TaskData], ahead: Ahead, arms: Sequence[ArmPlan]
) -> float:
    """Seconds of plain training: the first task of every seed once, every other for ``single``."""
    first = ahead.plain(tasks[0]) if config.single or any(arm.shares_first for arm in arms) else 0.0
    rest = sum(map(ahead.plain, tasks[1:])) if config.single else 0.0
    return len(config.seeds) * (first + rest)


def _disk(config: RunConfig, tasks: Sequence[TaskData], entries: int) -> int:
    """Bytes that the run will write, a few files of a few kilobytes left out."""
    stages = len(tasks)
    tested = sum(len(task.test) * (stages - place) for place, task in enumerate(tasks))
    if config.evaluate == "all":
        tested = stages * sum(len(task.test) for task in tasks)
    arm = 4 * entries * (_COPIES + stages) + _PREDICTION * tested
    plain = 4 * entries * 3 * (stages if config.single else 1)
    return len(config.seeds) * (len(config.arms) * arm + plain)


def _problems(
    config: RunConfig, chosen: Stream, tasks: Sequence[TaskData], disk: int
) -> Iterator[str]:
    out, path = config.out, config.out / SETTINGS
    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if disk > free:
        yield f"{there} has {free / GIB:.1f} GiB free, the run takes about {disk / GIB:.1f} GiB"
    if path.is_file():
        found = read_json(path)
        yield from _differences(found, config, chosen, tasks)
    elif out.is_dir() and any(out.iterdir()):
        yield f"{out} is not empty and holds no run: `aimmerge run` will refuse it"


def _differences(
    found: dict[str, Any], config: RunConfig, chosen: Stream, tasks: Sequence[TaskData]
) -> Iterator[str]:
    """The first setting in which the run that is there differs."""
    mine = {**config.identity(), "stream": list(chosen.tasks)}
    mine |= {"tasks_sha256": {task.name: task.sha256 for task in tasks}}
    theirs = found.get("identity", {})
    if found.get("version") != VERSION:
        yield f"{config.out} holds a run of version {found.get('version')!r}, not {VERSION}"
        return
    for key, value in mine.items():
        if theirs.get(key) != json.loads(json.dumps(value)):
            yield f"{config.out} holds another run: {key}={theirs.get(key)!r}, not {value!r}"
            return


# ---- tables --------------------------------------------------------------------------------


def _blocks(found: Plan) -> Iterator[Table | Bullets]:
    tasks = [
        (t.name, t.metric, *(f"{n:,}" for n in (t.train, t.dev, t.test, t.updates)), f"{t.tokens}")
        for t in found.tasks
    ]
    label = f" ({found.label})" if found.label else ""
    columns = ("task", "metric", "train", "dev", "test", "updates", "tokens/row")
    notes = tuple(f"{task.name}: {note}" for task in found.tasks for note in task.notes)
    yield Table(f"Stream {found.stream}{label}", columns, tuple(map(cells, tasks)), notes)
    arms = [
        (
            f"{arm.name}, seed {arm.seed}",
            f"{arm.updates:,}",
            _span(arm.merges),
            _span(arm.memory_rows),
            f"{arm.probe_rows:,}",
            " ".join(map(str, arm.kept)),
            "done" if arm.done == "finished" else _time(arm.seconds),
            arm.done,
        )
        for arm in found.arms
    ]
    heads = ("arm", "updates", "merges", "memory rows", "probe rows", "kept after each stage")
    yield Table("Arms", (*heads, "time", "there already"), tuple(map(cells, arms)))
    fits = "fits" if found.fits else "DOES NOT FIT"
    yield Bullets(
        (
            f"Memory: {found.memory}; {found.free / GIB:.2f} GiB free on {found.device}: {fits}.",
            f"Disk: about {found.disk / (1 << 20):,.0f} MiB in {found.out}.",
            f"Time: about {_time(found.seconds)}, of which {duration(found.shared_seconds)} for "
            f"plain training that arms share; rough, from {found.matmul / 1e9:,.0f} GFLOP/s of a "
            "matmul measured now: it may be off by a factor of three.",
            *(f"Problem: {problem}." for problem in found.problems),
        )
    )


def _span(span: Span) -> str:
    low, high = span
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _time(span: Span) -> str:
    low, high = (duration(seconds) for seconds in span)
    return low if low == high else f"{low} to {high}"
