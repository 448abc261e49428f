"""The report on a run folder: tables, figures, the controller's diagnosis, the paper's numbers.

``write_report(out)`` writes Markdown, one self-contained HTML file and PNG figures;
``show_summary(results, console)`` prints the tables; ``paper_table(results, which)`` puts the run
beside a table of the paper, for ``show_section`` or ``markdown_of``. Everything is read from
``results.json`` and the arms' ``events.jsonl``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aimmerge_fast.cl.report.blocks import Section
from aimmerge_fast.cl.report.paper import paper_table
from aimmerge_fast.cl.report.reading import parse_run, read_run
from aimmerge_fast.cl.report.run import Run
from aimmerge_fast.cl.report.terminal import show_section

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "markdown_of",
    "paper_table",
    "read_run",
    "show_section",
    "show_summary",
    "write_report",
]


def write_report(out: Path) -> list[Path]:
    """Write the report of the run folder ``out`` into ``out/report``; see ``report.write``."""
    from aimmerge_fast.cl.report import write

    return write.write_report(out)


def show_summary(results: Mapping[str, Any] | Run, console: Console) -> None:
    """Print what was kept and lost, and the methods, as tables.

    Raises:
        ValueError: results of another version, or malformed.
    """
    from aimmerge_fast.cl.report.notes import stream_title
    from aimmerge_fast.cl.report.tables import kept_table, method_table, without_task_notes

    run = results if isinstance(results, Run) else parse_run(results)
    tables = (without_task_notes(run, kept_table(run)), method_table(run))
    show_section(Section(f"Run on {stream_title(run)}", tables), console)


def markdown_of(section: Section) -> str:
    """A section as Markdown."""
    from aimmerge_fast.cl.report.markdown import section_lines

    return "\n".join(section_lines(section)).rstrip() + "\n"
