"""The ``aimmerge`` command. Each command imports what it needs, so that ``--help`` stays quick."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from aimmerge_fast import __version__
from aimmerge_fast.cli import engine, streams

app = typer.Typer(
    name="aimmerge",
    help="AIMMerging for LoRA on a stream of tasks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # a trace without the reader's data in it
)
app.registered_commands += streams.app.registered_commands
app.registered_commands += engine.app.registered_commands
app.add_typer(streams.data_app, name="data")


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


def main() -> None:
    """Entry point: a bad input is one line on stderr and exit status 2."""
    try:
        app()
    except (ValueError, RuntimeError, OSError, FloatingPointError) as error:
        print(f"aimmerge: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("aimmerge: stopped; the same command goes on from the last save", file=sys.stderr)
        sys.exit(130)
