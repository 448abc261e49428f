"""Commands about whole runs: run, plan, eval, report, demo, data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from aimmerge_fast.cl.config import RunConfig

app = typer.Typer()
data_app = typer.Typer(help="Look at, check and convert records.", no_args_is_help=True)

ConfigFile = Annotated[
    Path | None, typer.Argument(metavar="[CONFIG.yaml]", help="Settings; flags override them.")
]
Stream = Annotated[
    str | None, typer.Option(help="order1 ... order7, cross19, or task names with commas.")
]
Data = Annotated[Path | None, typer.Option(help="Folder of the records.")]
Model = Annotated[Path | None, typer.Option(help="Model folder, .gguf file, or wheel with one.")]
Out = Annotated[Path | None, typer.Option(help="Folder of the run; continued if it exists.")]
Arms = Annotated[
    list[str] | None,
    typer.Option("--arm", metavar="NAME[+memory][:KEY=VALUE,...]", help="A method; repeatable."),
]
Seeds = Annotated[str | None, typer.Option(help="With commas; default 42.")]
Preset = Annotated[
    str | None, typer.Option(help="Settings of a table of the paper: table1, table2, ...")
]
Available = Annotated[bool, typer.Option("--available", help="Run the tasks that are there.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any other setting of RunConfig; repeatable."),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object instead.")]


def settings(
    file: Path | None, flags: dict[str, Any], preset: str | None, sets: list[str] | None
) -> RunConfig:
    """Preset, then file, then flags, then --set: the later wins. ``ValueError`` as `build`."""
    from aimmerge_fast.cl.config import build, read_yaml
    from aimmerge_fast.cl.presets import preset_fields

    fields: dict[str, Any] = {}
    from_file = read_yaml(file) if file is not None else {}
    chosen = preset or from_file.pop("preset", None)
    if chosen is not None:
        fields |= preset_fields(chosen)
    fields |= from_file
    if flags.get("stream") and "," in flags["stream"]:
        flags["stream"] = flags["stream"].split(",")
    if flags.get("seeds"):
        flags["seeds"] = flags["seeds"].split(",")
    fields |= {name: value for name, value in flags.items() if value}
    for setting in sets or []:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"--set {setting!r} must be KEY=VALUE")
        try:
            fields[key] = json.loads(value)
        except json.JSONDecodeError:
            fields[key] = value  # a bare word
    return build(fields, str(file) if file is not None else "settings")


@app.command()
def run(
    file: ConfigFile = None,
    stream: Stream = None,
    data: Data = None,
    model: Model = None,
    out: Out = None,
    arm: Arms = None,
    seeds: Seeds = None,
    preset: Preset = None,
    available: Available = False,
    sets: Sets = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="ARM", help="Train only this arm of the run; repeatable."),
    ] = None,
) -> None:
    """Train a stream with every arm, evaluate, and write the report. Continues a killed run."""
    from rich.console import Console

    from aimmerge_fast.cl import report, runner

    paths = {"data": data, "model": model, "out": out}
    flags = {**paths, "stream": stream, "arms": arm, "seeds": seeds, "available": available}
    config = settings(file, flags, preset, sets)
    console = Console()
    results = runner.run(config, console, only or ())
    if runner.is_main():
        report.show_summary(results, console)
        written = report.write_report(config.out)
        console.print(f"report: {written[0]}", markup=False, soft_wrap=True)
    if failed := runner.failures(results):
        if runner.is_main():
            for line in failed:
                typer.echo(f"aimmerge: {line}", err=True)
            typer.echo("aimmerge: the same command tries again what failed", err=True)
        raise typer.Exit(1)


@app.command()
def plan(
    file: ConfigFile = None,
    stream: Stream = None,
    data: Data = None,
    model: Model = None,
    out: Out = None,
    arm: Arms = None,
    seeds: Seeds = None,
    preset: Preset = None,
    available: Available = False,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Say what a run would do: tasks, updates, merges, rehearsal rows, memory, time."""
    from rich.console import Console

    from aimmerge_fast.cl import plan as planning

    paths = {"data": data, "model": model, "out": out}
    flags = {**paths, "stream": stream, "arms": arm, "seeds": seeds, "available": available}
    found = planning.plan(settings(file, flags, preset, sets))
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
    else:
        planning.show(found, Console())


@app.command("eval")
def evaluate(
    out: Annotated[Path, typer.Argument(help="Folder of the run.")],
    arm: Annotated[str | None, typer.Option(help="Its name; default every arm.")] = None,
    seed: Annotated[int | None, typer.Option(help="Default: every seed.")] = None,
    stage: Annotated[int | None, typer.Option(help="After which stage, from 1; default last.")] = (
        None
    ),
    tasks: Annotated[str | None, typer.Option(help="With commas; default all.")] = None,
    test_items: Annotated[int, typer.Option(help="Records per task; 0: all of them.")] = 0,
    split: Annotated[str, typer.Option(help="test or dev.")] = "test",
    dtype: Annotated[str | None, typer.Option(help="Default: the run's.")] = None,
) -> None:
    """Score saved adapters again: on more records, other tasks, in another precision."""
    from rich.console import Console

    from aimmerge_fast.cl.reevaluate import Chosen, reevaluate

    reevaluate(
        out,
        Chosen(arm, seed, stage),
        tasks=tasks.split(",") if tasks else None,
        test_items=test_items,
        split=split,
        dtype=dtype,
        console=Console(),
    )


@app.command()
def report(
    out: Annotated[Path, typer.Argument(help="Folder of the run.")],
    paper: Annotated[
        str | None, typer.Option(help="Put the run beside a table of the paper: table2, ...")
    ] = None,
) -> None:
    """Write the report of a run: Markdown, one HTML file, figures."""
    from rich.console import Console

    from aimmerge_fast.cl import report as reports

    console = Console()
    found = reports.read_run(out)
    if paper is not None:
        reports.show_section(reports.paper_table(found, paper), console)
        return
    reports.show_summary(found, console)
    for path in reports.write_report(out):
        console.print(str(path), markup=False, soft_wrap=True)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where files and report go.")] = Path("aimmerge-demo"),
    seed: Annotated[int, typer.Option(help="Of tasks, model and training.")] = 42,
) -> None:
    """A tiny model learns three tasks that conflict: plain, with replay, with AIMMerging."""
    from rich.console import Console

    from aimmerge_fast.cl import report as reports
    from aimmerge_fast.cl import runner
    from aimmerge_fast.cl.demo import demo_config

    console = Console()
    results = runner.run(demo_config(out, seed), console)
    reports.show_summary(results, console)
    written = reports.write_report(out / "run")
    console.print(f"report: {written[0]}", markup=False, soft_wrap=True)


def _say(found: dict[str, Any], as_json: bool) -> None:
    from rich.console import Console

    from aimmerge_fast.cl.data import command

    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        command.show(found, Console())
    if not found["ok"]:
        raise typer.Exit(1)


@data_app.command("list")
def list_streams(as_json: AsJson = False) -> None:
    """The streams and their tasks."""
    from aimmerge_fast.cl.data import command

    _say(command.list_streams(), as_json)


@data_app.command("check")
def check(
    folder: Annotated[Path, typer.Argument(help="Folder of the records.")],
    stream: Annotated[str | None, typer.Option(help="Only this stream's tasks.")] = None,
    variant: Annotated[str, typer.Option(help="repaired or faithful.")] = "repaired",
    as_json: AsJson = False,
) -> None:
    """Read every record; say what is there, what is missing and which defects were found."""
    from aimmerge_fast.cl.data import command

    _say(command.check(folder, tasks=stream, variant=variant), as_json)


@data_app.command("convert")
def convert(
    stream: Annotated[str, typer.Argument(help="A stream, or task names with commas.")],
    out: Annotated[Path, typer.Option(help="Folder to write {train,dev,test}/ into.")],
    overwrite: Annotated[bool, typer.Option(help="Replace files that are there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Build a stream's records from the primary public datasets (needs the network)."""
    from aimmerge_fast.cl.data import command

    _say(command.convert(stream, out, overwrite=overwrite), as_json)
