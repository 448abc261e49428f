"""A document as GitHub-flavoured Markdown; figures are links to the PNG files beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from aimmerge_fast.cl.report.blocks import (
    Block,
    Bullets,
    Cell,
    Document,
    Paragraph,
    Picture,
    Section,
    Table,
)

_SPECIAL = re.compile(r"([\\`*{}\[\]<>#|~$&]|(?<![0-9A-Za-z])_|_(?![0-9A-Za-z]))")
#: What would begin a list, a heading or a rule at the start of a line.
_LEADING = re.compile(r"^([-+=]|\d+[.)])(?=\s|$|[-=])")


def escape(text: str) -> str:
    """``text`` so that Markdown shows it as it is, on one line, in a table too."""
    line = " ".join(text.split())
    escaped = _SPECIAL.sub(r"\\\1", line)
    return _LEADING.sub(lambda found: found[1][:-1] + "\\" + found[1][-1], escaped)


def render(document: Document) -> str:
    lines = [f"# {escape(document.title)}", ""]
    for section in document.sections:
        lines += section_lines(section)
    return "\n".join(lines).rstrip() + "\n"


def section_lines(section: Section) -> list[str]:
    lines = [f"## {escape(section.title)}", ""]
    for block in section.blocks:
        lines += [*_block(block), ""]
    return lines


def _block(block: Block) -> Iterator[str]:
    if isinstance(block, Paragraph):
        yield escape(block.text)
    elif isinstance(block, Bullets):
        yield from (f"- {escape(item)}" for item in block.items)
    elif isinstance(block, Picture):
        yield f"![{escape(block.caption)}]({block.name}.png)"
        yield ""
        yield escape(block.caption)
    else:
        yield from table_lines(block)


def table_lines(table: Table) -> Iterator[str]:
    """The table, best cells in bold, then its notes as a list."""
    yield _row([escape(column) for column in table.columns])
    yield _row(["---", *["---:"] * (len(table.columns) - 1)])
    for row in table.rows:
        yield _row([_cell(cell) for cell in row])
    if table.notes:
        yield ""
        yield from (f"- {escape(note)}" for note in table.notes)


def _row(texts: list[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _cell(cell: Cell) -> str:
    text = escape(cell.text)
    return f"**{text}**" if cell.best and text else text
