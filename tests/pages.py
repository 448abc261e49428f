"""Tables of Markdown pages, and the tests that their rows name."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
CODE = re.compile(r"`([^`]+)`")
TEST = re.compile(r"[\w/]+\.py::\w+")


def rows(page: str) -> list[list[str]]:
    """The cells of each row of the page's tables, without the rows that head them."""
    lines = [line for line in page.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    heads = {at - 1 for at, row in enumerate(cells) if set("".join(row)) <= set("-: ") and row}
    return [
        row
        for at, row in enumerate(cells)
        if at not in heads and not set("".join(row)) <= set("-: ")
    ]


def is_defined(name: str, folder: str = "") -> bool:
    """Whether ``file.py::test`` is there; files without a folder lie in ``folder``."""
    file, test = name.split("::")
    path = ROOT / (file if file.startswith("tests/") else f"{folder}/{file}")
    return path.is_file() and test in _defined_in(path)


@functools.cache
def _defined_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
