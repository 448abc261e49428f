"""Tables in a terminal: with rich where there is one, as aligned plain text elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from aimmerge_fast.cl.report.blocks import (
    Block,
    Bullets,
    Cell,
    Paragraph,
    Picture,
    Section,
    Table,
    of_columns,
)

if TYPE_CHECKING:
    from rich.console import Console

#: For output that cannot take the letters of tables.
_ASCII = {"−": "-", "–": "-", "→": "->", "±": "+-", "÷": "over ", "×": "x"}
_ASCII |= {"Λ": "Lambda", "α": "alpha", "δ": "delta"}


def show_section(section: Section, console: Console) -> None:
    """Title and blocks; pictures are left out."""
    _line(section.title, console, "bold")
    for block in section.blocks:
        show_block(block, console)


def show_block(block: Block, console: Console) -> None:
    if isinstance(block, Table):
        for part in _narrow(block, console.width if console.is_terminal else None):
            _show_table(part, console)
        for note in block.notes:
            _line(f"  {note}", console, "dim")
    elif isinstance(block, Bullets):
        for item in block.items:
            _line(f"- {item}", console)
    elif isinstance(block, Paragraph):
        _line(block.text, console)
    elif isinstance(block, Picture):
        return
    _line("", console)


def _show_table(table: Table, console: Console) -> None:
    if not console.is_terminal:
        for line in plain_lines(table):
            _line(line, console)
        return
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(title=Text(_fit(table.title, console)), title_justify="left")
    for index, column in enumerate(table.columns):
        shown.add_column(Text(_fit(column, console)), justify="right" if index else "left")
    for row in table.rows:
        shown.add_row(*(Text(_fit(cell.text, console), style=_style(cell)) for cell in row))
    console.print(shown)


def plain_lines(table: Table) -> list[str]:
    """Title, header and rows in columns as wide as their widest text; * marks the best."""
    rows = [
        list(table.columns),
        *([c.text + (" *" if c.best else "") for c in row] for row in table.rows),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    ]
    return [table.title, *lines]


def _narrow(table: Table, width: int | None) -> Iterator[Table]:
    """The table, or parts of its columns that fit; the first column leads each of them."""
    columns = list(zip(table.columns, *([c.text for c in row] for row in table.rows), strict=True))
    needed = [max(map(len, column)) + 3 for column in columns]
    places: list[int] = []
    for place in range(1, len(columns)):
        so_far = needed[0] + sum(needed[i] for i in places) + 1
        if width is not None and places and so_far + needed[place] > width:
            yield of_columns(table, (0, *places))
            places = []
        places.append(place)
    yield of_columns(table, (0, *places))


def _style(cell: Cell) -> str:
    if cell.best:
        return "bold green"
    return "yellow" if cell.tone is not None and cell.tone <= -0.2 else ""


def _line(text: str, console: Console, style: str = "") -> None:
    console.print(
        _fit(text, console),
        style=style or None,
        markup=False,
        highlight=False,
        soft_wrap=not console.is_terminal,
    )


def _fit(text: str, console: Console) -> str:
    """``text`` in letters that the console's encoding has, without control characters."""
    encoding = console.encoding or "utf-8"
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    try:
        text.encode(encoding)
        return text
    except UnicodeEncodeError:
        for letter, plain in _ASCII.items():
            text = text.replace(letter, plain)
        return text.encode(encoding, "replace").decode(encoding)
