"""A document as one HTML file that needs nothing else: styles inline, figures embedded."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from html import escape

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

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2328; background: #fff;
       max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .5rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #d8dee4; text-align: right;
         white-space: nowrap; }
th { border-bottom: 2px solid #8c959f; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
.best { font-weight: 700; outline: 2px solid #009e73; outline-offset: -2px; }
.notes { color: #57606a; font-size: .85rem; padding-left: 1.2rem; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; }
figcaption { color: #57606a; font-size: .85rem; }
"""
# Blue and orange are told apart by every kind of colour vision.
_GAINED, _LOST = "0, 114, 178", "230, 130, 0"
_FULL = 0.45


def render(document: Document) -> str:
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">",
        f"<title>{escape(document.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
        f"<h1>{escape(document.title)}</h1>",
    ]
    for section in document.sections:
        parts += _section(section)
    return "\n".join([*parts, "</body>\n</html>\n"])


def _section(section: Section) -> Iterator[str]:
    yield f"<section>\n<h2>{escape(section.title)}</h2>"
    for block in section.blocks:
        yield from _block(block)
    yield "</section>"


def _block(block: Block) -> Iterator[str]:
    if isinstance(block, Paragraph):
        yield f"<p>{escape(block.text)}</p>"
    elif isinstance(block, Bullets):
        yield _list(block.items)
    elif isinstance(block, Picture):
        data = base64.b64encode(block.png).decode("ascii")
        caption = escape(block.caption)
        yield f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
        yield f"<figcaption>{caption}</figcaption></figure>"
    else:
        yield from _table(block)


def _table(table: Table) -> Iterator[str]:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    yield f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>'
    for row in table.rows:
        yield f"<tr>{''.join(map(_cell, row))}</tr>"
    yield "</tbody></table></div>"
    if table.notes:
        yield _list(table.notes, ' class="notes"')


def _cell(cell: Cell) -> str:
    mark = ' class="best"' if cell.best else ""
    if cell.tone:
        colour = _LOST if cell.tone < 0 else _GAINED
        mark += f' style="background: rgba({colour}, {abs(cell.tone) * _FULL:.2f})"'
    return f"<td{mark}>{escape(cell.text)}</td>"


def _list(items: tuple[str, ...], mark: str = "") -> str:
    return f"<ul{mark}>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"
