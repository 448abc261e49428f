"""The body of ``aimmerge data``: what streams there are, what a folder holds, conversion.

Each function returns plain data (JSON types); ``show`` prints it. ``ok`` is False where something
is malformed, missing or failed, for the exit status.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aimmerge_fast.cl.data.formats import FORMATS, check_format
from aimmerge_fast.cl.data.layout import TaskFiles, find_tasks, missing_files
from aimmerge_fast.cl.data.loading import load_stream
from aimmerge_fast.cl.data.primary import Loader, convert_task, convertible, hub_rows
from aimmerge_fast.cl.data.splits import VARIANTS, check_variant
from aimmerge_fast.cl.streams import ORDERS, REMARKS, Stream, stream

if TYPE_CHECKING:
    from rich.console import Console

Report = dict[str, Any]


def list_streams() -> Report:
    """The named streams with their tasks, and the formats and variants that loaders know."""
    streams = [
        {
            "name": order.name,
            "benchmark": order.benchmark,
            "tasks": list(order.tasks),
            "remark": REMARKS.get(order.name, ""),
        }
        for order in ORDERS.values()
    ]
    return {
        "kind": "streams",
        "ok": True,
        "streams": streams,
        "formats": list(FORMATS),
        "variants": list(VARIANTS),
    }


def check(
    folder: Path,
    *,
    tasks: str | Sequence[str] | None = None,
    format: str = "auto",
    variant: str = "repaired",
) -> Report:
    """Read every task of ``folder`` (or of ``tasks``, an order or a list): counts and defects.

    A malformed task is a row with its ``error``; the others are still read. ``FileNotFoundError``:
    no such folder. ``ValueError``: unknown tasks, format or variant, or nothing found.
    """
    folder = Path(folder)
    check_format(format)
    check_variant(variant)
    found = find_tasks(folder)
    names = tuple(found) if tasks is None else stream(tasks, folder=folder).tasks
    if not names:
        raise ValueError(f"{folder} holds no task files; the formats known: {', '.join(FORMATS)}")
    rows = [_checked(folder, name, found.get(name), format, variant) for name in names]
    usable = {row["name"] for row in rows if row["error"] is None}
    coverage = [
        {
            "name": order.name,
            "present": sum(task in usable for task in order.tasks),
            "tasks": len(order.tasks),
        }
        for order in ORDERS.values()
    ]
    return {
        "kind": "check",
        "ok": all(row["error"] is None for row in rows),
        "folder": str(folder),
        "variant": variant,
        "tasks": rows,
        "streams": [entry for entry in coverage if entry["present"]],
    }


def convert(
    spec: str | Sequence[str],
    out: Path,
    *,
    loader: Loader = hub_rows,
    overwrite: bool = False,
    seed: int = 42,
) -> Report:
    """Build the tasks of ``spec`` (an order or a list) from their primary datasets under ``out``.

    A task that fails is a row with its ``error``; the others are written. ``ValueError``: unknown
    tasks, or tasks without a converter.
    """
    rows: list[Report] = []
    for name in convertible(stream(spec).tasks):
        row: Report = {"name": name, "train": None, "dev": None, "test": None, "error": None}
        try:
            row.update(convert_task(name, Path(out), loader=loader, seed=seed, overwrite=overwrite))
        except (ValueError, OSError) as error:
            row["error"] = str(error)
        rows.append(row)
    ok = all(row["error"] is None for row in rows)
    return {"kind": "convert", "ok": ok, "out": str(out), "tasks": rows}


def show(report: Report, console: Console) -> None:
    """Print what ``list_streams``, ``check`` or ``convert`` returned."""
    {"streams": _show_streams, "check": _show_check, "convert": _show_convert}[report["kind"]](
        report, console
    )


def _checked(folder: Path, name: str, files: TaskFiles | None, format: str, variant: str) -> Report:
    row: Report = {"name": name, "train": None, "dev": None, "test": None}
    row |= {"metric": None, "labels": None, "notes": [], "sha256": None, "error": None}
    if files is None or not files.complete:
        return row | {"error": f"missing files: {missing_files(name, files)}"}
    try:
        one = Stream("custom", (name,), "custom")
        _, (task,) = load_stream(folder, one, format=format, variant=variant)
    except (ValueError, OSError) as error:
        return row | {"error": str(error)}
    return row | {
        "train": len(task.train),
        "dev": len(task.dev),
        "test": len(task.test),
        "metric": task.metric,
        "labels": None if task.labels is None else list(task.labels),
        "notes": list(task.notes),
        "sha256": task.sha256,
    }


def _show_streams(report: Report, console: Console) -> None:
    from rich.table import Table

    table = Table("stream", "benchmark", "tasks", title="Streams")
    for entry in report["streams"]:
        tasks = " → ".join(entry["tasks"])
        remark = f"\n({entry['remark']})" if entry["remark"] else ""
        table.add_row(entry["name"], entry["benchmark"], tasks + remark)
    console.print(table)
    console.print(f"Formats: {', '.join(report['formats'])}. Any list of tasks is a stream too.")


def _show_check(report: Report, console: Console) -> None:
    from rich.markup import escape
    from rich.table import Table

    columns = ("task", "train", "dev", "test", "metric", "labels")
    table = Table(title=f"{report['folder']} ({report['variant']})")
    for column in columns:
        table.add_column(column, justify="right" if column in columns[1:4] else "left")
    table.add_column("found", ratio=1)
    for row in report["tasks"]:
        found = (
            f"[red]{escape(row['error'])}[/]" if row["error"] else escape("\n".join(row["notes"]))
        )
        labels = str(len(row["labels"])) if row["labels"] else ""
        counts = ("" if row[split] is None else str(row[split]) for split in columns[1:4])
        table.add_row(row["name"], *counts, row["metric"] or "", labels, found)
    console.print(table)
    for entry in report["streams"]:
        console.print(f"{entry['name']}: {entry['present']} of {entry['tasks']} tasks")


def _show_convert(report: Report, console: Console) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table("task", "train", "dev", "test", "", title=f"Written to {report['out']}")
    for row in report["tasks"]:
        counts = (
            "" if row[split] is None else str(row[split]) for split in ("train", "dev", "test")
        )
        table.add_row(
            row["name"], *counts, f"[red]{escape(row['error'])}[/]" if row["error"] else ""
        )
    console.print(table)
