"""Scores of saved adapters, again: on more records, other tasks, in another precision."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aimmerge_fast.cl import models
from aimmerge_fast.cl.arm_folder import RESULT
from aimmerge_fast.cl.config import RunConfig, build
from aimmerge_fast.cl.data import TaskData, load_stream
from aimmerge_fast.cl.evaluate import TaskScore, evaluate
from aimmerge_fast.cl.parallel import Ranks
from aimmerge_fast.cl.prepare import new_encoder
from aimmerge_fast.cl.report.blocks import Section, Table, cells, number
from aimmerge_fast.cl.report.terminal import show_section
from aimmerge_fast.cl.runner import SETTINGS, VERSION
from aimmerge_fast.cl.streams import stream
from aimmerge_fast.durable.files import json_line, read_json, write_bytes, write_json

if TYPE_CHECKING:
    from rich.console import Console

SPLITS = ("test", "dev")
FOLDER = "eval"


@dataclasses.dataclass(frozen=True)
class Saved:
    """The adapter that an arm saved after a stage (number from 1)."""

    arm: str
    seed: int
    number: int
    stage: str
    folder: Path
    scores: dict[str, float]  # of the run itself, by task


@dataclasses.dataclass(frozen=True)
class Chosen:
    """What to score: ``arm``, ``seed`` None: every; ``stage`` None: the last that was saved."""

    arm: str | None = None
    seed: int | None = None
    stage: int | None = None


def reevaluate(
    out: Path,
    chosen: Chosen | None = None,
    *,
    tasks: Sequence[str] | None = None,
    test_items: int = 0,
    split: str = "test",
    dtype: str | None = None,
    console: Console | None = None,
) -> list[dict[str, Any]]:
    """Generate with the adapters saved in run folder ``out``, score, and write ``out``/eval.

    The run's own results stay as they are. ``tasks``: any of the run's data folder; None: the
    run's. ``test_items``: records of the split per task; 0: all. ``dtype`` of the frozen weights;
    None: the run's. Returns what it wrote, one a saved adapter.

    Raises:
        ValueError: no run, another version, another model; an unknown arm, seed, stage, task,
            split or dtype (lists the known). OSError: files that cannot be read or written.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known are {', '.join(SPLITS)}")
    run = _run(out)
    config = _settings(run, out, dtype)
    found = list(_choose(out, chosen or Chosen(), run["identity"]["stream"]))
    data = _records(config, tasks, test_items, split)
    if models.fingerprint(config.model) != run["identity"]["model_sha256"]:
        raise ValueError(f"{config.model} is not the model that the run in {out} was made with")
    loaded = models.load_model(config.model, dtype=config.dtype, attention=config.attention)
    encoder = new_encoder(config, loaded.tokenizer, loaded.seq2seq)
    base = loaded.model.to(Ranks().device)
    how = {"split": split, "dtype": config.dtype, "items": test_items or None}
    written = []
    for saved in found:
        model = _attach(base, saved.folder)
        scores = {}
        for task in data:
            records = task.test if split == "test" else task.dev
            scores[task.name] = evaluate(
                model,
                encoder,
                task,
                records,
                batch=config.eval_batch,
                max_new_tokens=config.max_new_tokens,
            )
        base = model.unload()
        written.append(_write(out, saved, how, data, scores))
    if console is not None:
        _show(written, split, console)
    return written


def _run(out: Path) -> dict[str, Any]:
    """Settings and identity of the run."""
    path = out / SETTINGS
    if not path.is_file():
        raise ValueError(f"{out} holds no run: there is no {SETTINGS}")
    found = read_json(path)
    if found.get("version") != VERSION:
        raise ValueError(f"{out} holds a run of version {found.get('version')!r}, not {VERSION}")
    return found


def _settings(run: dict[str, Any], out: Path, dtype: str | None) -> RunConfig:
    changed: dict[str, Any] = {"out": out}  # the folder may have been moved
    if dtype is not None:
        changed["dtype"] = dtype
    return build({**run["settings"], **changed}, str(out / SETTINGS))


def _records(
    config: RunConfig, tasks: Sequence[str] | None, items: int, split: str
) -> list[TaskData]:
    names = config.stream if tasks is None else tuple(tasks)
    _, data = load_stream(
        config.data,
        stream(names, folder=config.data),
        format=config.format,
        available=config.available,
        variant=config.variant,
        test_items=items if split == "test" else 0,
        dev_items=items if split == "dev" else 0,
        selects=config.select == "best",
    )
    for task in data:
        if not (task.test if split == "test" else task.dev):
            raise ValueError(f"task {task.name!r} has no {split} records")
    return data


def _saved(out: Path, tasks: Sequence[str]) -> Iterator[Saved]:
    """Every adapter of the run folder, by arm, seed and stage."""
    for path in sorted(out.glob(f"*/{RESULT}")):
        entry = read_json(path)
        for folder in sorted((path.parent / "adapters").glob("*/adapter_config.json")):
            number, _, stage = folder.parent.name.partition("-")
            row = entry["scores"][int(number) - 1] if int(number) <= len(entry["scores"]) else []
            scores = dict(zip(tasks, row, strict=False))
            known = {task: score for task, score in scores.items() if score is not None}
            place = (entry["name"], entry["seed"], int(number), stage)
            yield Saved(*place, folder.parent, known)


def _choose(out: Path, chosen: Chosen, tasks: Sequence[str]) -> Iterator[Saved]:
    known = sorted(_saved(out, tasks), key=lambda saved: (saved.arm, saved.seed, saved.number))
    if not known:
        raise ValueError(f"the run in {out} has saved no adapter yet")
    for field, value in (("arm", chosen.arm), ("seed", chosen.seed)):
        there = list(dict.fromkeys(getattr(saved, field) for saved in known))
        if value is not None and value not in there:
            raise ValueError(f"the run in {out} has no {field} {value!r}; it has {_list(there)}")
        known = [s for s in known if value is None or getattr(s, field) == value]
    for arm, seed in dict.fromkeys((saved.arm, saved.seed) for saved in known):
        stages = {s.number: s for s in known if (s.arm, s.seed) == (arm, seed)}
        number = max(stages) if chosen.stage is None else chosen.stage
        if number not in stages:
            there = [f"{number} ({saved.stage})" for number, saved in stages.items()]
            raise ValueError(
                f"arm {arm!r}, seed {seed} has no adapter of stage {chosen.stage}; it has "
                f"{_list(there)}"
            )
        yield stages[number]


def _list(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values))


def _attach(base: Any, folder: Path) -> Any:
    """The base with the adapters of a stage, all of which act."""
    from peft import PeftModel

    with warnings.catch_warnings():
        # PEFT asks transformers in an older spelling; nothing that a user could change
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        model: Any = PeftModel.from_pretrained(base, str(folder), local_files_only=True)
        for path in sorted(folder.glob("*/adapter_config.json")):  # what later tasks added
            model.load_adapter(str(path.parent), path.parent.name, local_files_only=True)
    model.base_model.set_adapter(list(model.peft_config))
    model.requires_grad_(False)
    return model.eval()


def _write(
    out: Path,
    saved: Saved,
    how: dict[str, Any],
    data: Sequence[TaskData],
    scores: dict[str, TaskScore],
) -> dict[str, Any]:
    """One JSON file; scores of other tasks that were taken in the same way stay in it."""
    parts = (f"{saved.arm}-s{saved.seed}", f"{saved.number}-{saved.stage}", how["split"])
    name = "-".join([*parts, how["dtype"], str(how["items"] or "all")])
    path = out / FOLDER / f"{name}.json"
    found = read_json(path) if path.is_file() else {"tasks": {}}
    entry: dict[str, Any] = {
        "version": VERSION,
        "arm": saved.arm,
        "seed": saved.seed,
        "stage": saved.number,
        "stage_name": saved.stage,
        **how,
        "tasks": found["tasks"],
    }
    for task in data:
        score = scores[task.name]
        lines = "".join(map(json_line, score.predictions))
        file = f"{name}/{re.sub(r'[^A-Za-z0-9._-]', '_', task.name)}.jsonl"
        write_bytes(out / FOLDER / file, lines.encode())
        entry["tasks"][task.name] = {
            "score": score.score,
            "metric": task.metric,
            "items": score.items,
            "run": saved.scores.get(task.name),
            "notes": list(task.notes),
            "predictions": file,
        }
    write_json(path, entry)
    return {**entry, "file": str(path), "now": list(scores)}


def _show(written: Sequence[dict[str, Any]], split: str, console: Console) -> None:
    names = written[0]["now"]
    rows = []
    for entry in written:
        scores = [entry["tasks"][name]["score"] for name in names]
        head = f"{entry['arm']}, seed {entry['seed']}, after {entry['stage_name']}"
        mean = sum(scores) / len(scores)
        rows.append(cells([head, *map(number, scores), number(mean)]))
    title = f"Scores of {split} records, {written[0]['items'] or 'all'} per task"
    notes = [f"{n}: {note}" for n in names for note in written[0]["tasks"][n]["notes"]]
    notes += [f"written: {entry['file']}" for entry in written]
    table = Table(title, ("adapter", *names, "mean"), tuple(rows), tuple(notes))
    show_section(Section("", (table,)), console)
