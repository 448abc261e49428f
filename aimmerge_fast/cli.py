"""The ``aimmerge`` command. Each command imports what it needs, so that ``--help`` stays quick."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from aimmerge_fast import __version__

app = typer.Typer(
    name="aimmerge",
    help="AIMMerging for LoRA on a stream of tasks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # a trace without the reader's data in it
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    asked: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Options of ``aimmerge`` itself."""


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead.")] = False,
) -> None:
    """Say what is installed, what was built, and which backend runs where and why."""
    from rich.console import Console

    from aimmerge_fast.doctor import diagnose, show

    report = diagnose()
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        show(report, Console())


@app.command()
def simulate(
    file: Annotated[Path, typer.Argument(help="A trace file, or the events.jsonl of a run.")],
    more: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="More settings, after a --set."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, e.g. s_init=4."),
    ] = None,
    backend: Annotated[str, typer.Option(help="Whose transitions run.")] = "auto",
    out: Annotated[
        Path | None,
        typer.Option("--json", metavar="OUT", help="Write steps and merges as a trace file."),
    ] = None,
) -> None:
    """Run the controller open-loop on recorded losses and changes."""
    from rich.console import Console

    from aimmerge_fast.simulate.output import show, simulate_file, write_json

    results = simulate_file(file, [*(settings or []), *(more or [])], backend)
    if out is not None:
        write_json(out, results)
    show(results, Console())


def main() -> None:
    """Entry point: a bad input is one line on stderr and exit status 2."""
    try:
        app()
    except (ValueError, RuntimeError, OSError) as error:
        print(f"aimmerge: {error}", file=sys.stderr)
        sys.exit(2)
