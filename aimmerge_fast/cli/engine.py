"""Commands about the engine: doctor, simulate, bench."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


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


BENCHES = {"merge": "merge_overhead.py", "training": "training_overhead.py"}


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(
    context: typer.Context,
    which: Annotated[str, typer.Argument(help=f"One of {', '.join(BENCHES)}.")] = "merge",
) -> None:
    """Measure what a merge (or a training step) costs here; further options go to the bench."""
    if which not in BENCHES:
        raise ValueError(f"unknown bench {which!r}; known are {', '.join(BENCHES)}")
    script = Path(__file__).resolve().parents[2] / "bench" / BENCHES[which]
    if not script.is_file():
        raise ValueError(
            "the benches are in the source tree, not in an installed package: clone the "
            f"repository and run python3 bench/{BENCHES[which]}"
        )
    done = subprocess.run([sys.executable, str(script), *context.args], check=False)
    raise typer.Exit(done.returncode)
