"""What a report is made of. Renderers (Markdown, HTML, terminal) know these and nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

NONE = "–"


@dataclasses.dataclass(frozen=True)
class Cell:
    """Plain text with what a renderer may make of it.

    Attributes:
        best: of its row. tone: -1 (lost) to 1 (gained), None where it says neither.
    """

    text: str
    best: bool = False
    tone: float | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """``rows`` of as many cells as ``columns``; the first column names the row.

    Attributes:
        notes: sentences that stand under it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()


def in_parts(table: Table, most: int) -> Iterator[Table]:
    """``table`` with at most so many columns beside the first; all parts have the notes."""
    for start in range(1, max(2, len(table.columns)), most):
        places = (0, *range(start, min(start + most, len(table.columns))))
        yield of_columns(table, places)


def of_columns(table: Table, places: Sequence[int]) -> Table:
    """The columns at ``places`` alone."""
    rows = tuple(tuple(row[i] for i in places) for row in table.rows)
    return dataclasses.replace(table, columns=tuple(table.columns[i] for i in places), rows=rows)


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure. ``name``: of its file, without ".png". ``caption``: what is to be seen."""

    name: str
    caption: str
    png: bytes


@dataclasses.dataclass(frozen=True)
class Paragraph:
    text: str


@dataclasses.dataclass(frozen=True)
class Bullets:
    items: tuple[str, ...]


Block = Table | Picture | Paragraph | Bullets


@dataclasses.dataclass(frozen=True)
class Section:
    title: str
    blocks: tuple[Block, ...]


@dataclasses.dataclass(frozen=True)
class Document:
    title: str
    sections: tuple[Section, ...]


def cells(texts: Sequence[str]) -> tuple[Cell, ...]:
    return tuple(map(Cell, texts))


def number(value: float | None, digits: int = 1) -> str:
    """``value`` with so many digits behind the point; a dash for None."""
    return NONE if value is None else f"{value:.{digits}f}".replace("-", "−")


def signed(value: float | None, digits: int = 1) -> str:
    """As ``number``, with its sign; zero has none."""
    if value is None:
        return NONE
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def spread(mean: float | None, sd: float | None, digits: int = 1) -> str:
    """``mean ± sd``, or the mean alone."""
    return number(mean, digits) + ("" if sd is None else f" ± {sd:.{digits}f}")


def counted(count: int, one: str, many: str | None = None) -> str:
    """``1 merge``, ``2 merges``."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
