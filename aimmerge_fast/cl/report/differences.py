"""What a run does not share with the paper's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from aimmerge_fast.cl.report.blocks import Table, cells, counted
from aimmerge_fast.cl.report.notes import stream_title
from aimmerge_fast.cl.report.run import Run, percent
from aimmerge_fast.cl.report.signals import OURS

Difference = tuple[str, str, str]


def differences_table(run: Run, which: str, paper: Mapping[str, Any]) -> Table:
    """Rows (what, paper, this run) of everything known to differ."""
    setup = paper["setup"]
    rows = [
        *_model(run, setup),
        *_tasks(run, which, paper),
        *_training(run, setup),
        *_memory(run, _ratios(which, paper)),
        *_seeds(run, setup),
        *_arms(run),
    ]
    return Table(
        title="What differs",
        columns=("", "paper", "this run"),
        rows=tuple(cells(row) for row in rows),
        notes=("The paper leaves open what this table does not name; its numbers are printed "
               "without deviations.",) if rows else ("Nothing that the settings show.",),
    )  # fmt: skip


def _model(run: Run, setup: Mapping[str, Any]) -> Iterator[Difference]:
    settings = run.settings
    model = PurePath(str(settings.get("model", "not recorded"))).name
    if setup["model"].lower() not in model.lower():
        yield "model", setup["model"], model
    if settings.get("dtype") not in (None, "float32"):
        yield "frozen weights", "float32 (authors' code)", str(settings["dtype"])
    wanted = (setup["rank"], setup["alpha"], setup["dropout"])
    found = tuple(settings.get(name) for name in ("rank", "alpha", "dropout"))
    if None not in found and found != wanted:
        texts = ["rank {}, alpha {}, dropout {}".format(*values) for values in (wanted, found)]
        yield "LoRA", texts[0], texts[1]
    targets = settings.get("targets")
    if targets and {str(name).removesuffix("_proj") for name in targets} != {"q", "v"}:
        yield "LoRA on", "q, v", ", ".join(map(str, targets))
    if settings.get("template") not in (None, "plain"):
        yield "prompt", "as in the records", f"template {settings['template']}"


def _tasks(run: Run, which: str, paper: Mapping[str, Any]) -> Iterator[Difference]:
    orders = {
        name: order
        for name, order in paper["table12"]["orders"].items()
        if order["benchmark"] == run.stream.get("benchmark")
    }
    name = str(run.stream.get("name"))
    if run.stream.get("label"):
        yield "tasks", "all of the order", str(run.stream["label"])
    if which in ("table2", "table6") and name in orders and len(orders) > 1:
        yield "task order", f"mean over {', '.join(orders)}", name
    elif name not in orders:
        yield "task order", "of a benchmark", f"{stream_title(run)}: {' → '.join(run.names)}"
    for setting, what in (("test_items", "test records"), ("dev_items", "dev records")):
        if run.settings.get(setting):
            yield what, "all", f"at most {run.settings[setting]} per task"
    noted = [task for task in run.names if run.tasks.get(task, {}).get("notes")]
    if noted:
        yield "records", "as released", f"see the notes on {', '.join(noted)}"


def _training(run: Run, setup: Mapping[str, Any]) -> Iterator[Difference]:
    settings = run.settings
    if settings.get("steps"):
        yield (
            "updates a task",
            f"{setup['epochs']} epochs",
            f"{settings['steps']} updates, {_records(settings)} records",
        )
    elif settings.get("epochs") not in (None, setup["epochs"]):
        yield "epochs", str(setup["epochs"]), str(settings["epochs"])
    if settings.get("batch") not in (None, setup["batch"]):
        yield "batch", f"{setup['batch']} (authors' scripts: 32)", str(settings["batch"])
    if settings.get("lr") not in (None, setup["lr"]):
        yield "learning rate", f"{setup['lr']:g}", f"{settings['lr']:g}"
    if settings.get("max_tokens"):
        yield (
            "length",
            "1024 input tokens (authors' code)",
            f"{settings['max_tokens']} tokens of prompt and answer",
        )
    elif settings.get("max_input") not in (None, 1024):
        yield "length", "1024 input tokens (authors' code)", f"{settings['max_input']} input tokens"
    if settings.get("max_new_tokens") not in (None, 128):
        yield "generated tokens", "128", str(settings["max_new_tokens"])
    if settings.get("select") == "best":
        yield "state evaluated", "not stated", "best dev loss (authors' code: the same)"


def _records(settings: Mapping[str, Any]) -> str:
    steps, batch = settings.get("steps"), settings.get("batch")
    return f"{steps * batch:,}" if steps and batch else "?"


def _ratios(which: str, paper: Mapping[str, Any]) -> tuple[str, ...]:
    """The paper's memory ratios in a table."""
    if which == "table5":
        return tuple(paper["tables"][which]["blocks"])
    return (percent(paper["setup"]["memory_ratio"]),)


def _memory(run: Run, ratios: tuple[str, ...]) -> Iterator[Difference]:
    settings = run.settings
    size, of_paper = settings.get("memory_size"), f"{' or '.join(ratios)} of each task"
    found = [percent(ratio) for ratio in sorted({group.memory_ratio for group in run.groups})]
    if size:
        yield "memory", of_paper, counted(size, "record")
    elif not set(found) <= set(ratios):
        yield "memory", of_paper, f"{' or '.join(found)} of each task"
    rule = settings.get("memory_rule")
    if rule is not None:
        yield "memory records", "random", f"rule {rule}"


def _seeds(run: Run, setup: Mapping[str, Any]) -> Iterator[Difference]:
    counts = sorted({len(group.used) for group in run.groups})
    if counts != [setup["runs"]]:
        found = " or ".join(map(str, counts)) or "0"
        yield "seeds", f"{setup['runs']} runs", found


def _arms(run: Run) -> Iterator[Difference]:
    """Settings of the AIM arms that are not the paper's defaults."""
    for group in run.groups:
        settings = dict(group.arms[0].settings)
        if group.method == "aim-released":
            settings["policy"] = "released"
        if group.method in OURS and settings:
            text = ", ".join(f"{key}={value}" for key, value in settings.items())
            yield group.label, "the paper's settings", text
