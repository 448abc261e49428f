"""Make the README's tables of figures from the results that are committed.

    python3 bench/readme_tables.py [--check] [--readme PATH] [--results FOLDER]

A block of the README from ``<!-- table: NAME -->`` to ``<!-- /table -->`` is rewritten in place;
what stands around the blocks stays. With ``--check`` nothing is written: where the README is not
what the results give, the difference is printed. Exit code 0: README and results agree (now);
1: ``--check`` found a difference; 2: an error, and the README is as it was.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from readme import merge, scores, sweep, training
from readme.records import ReadmeError

ROOT = Path(__file__).resolve().parents[1]
BLOCKS: dict[str, Callable[[Path], list[str]]] = {
    "merge": merge.block,
    "sweep": sweep.block,
    "training": training.block,
    "real": scores.real,
    "methods": scores.methods,
}
DIFFERS, BAD_INPUT = 1, 2
_MARK = re.compile(r"\s*<!--\s*/?\s*table\b")
_OPEN = re.compile(r"<!-- table: (\S+) -->")
_CLOSE = "<!-- /table -->"


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, rewrite or compare; returns the exit code."""
    options = _parser().parse_args(arguments)
    path: Path = options.readme
    try:
        old = read(path)
        new = fill(old, path.name, options.results)
        if new == old:
            print(f"{path.name}: every table is what the results give")
            return 0
        if options.check:
            print(_difference(old, new, path.name), end="")
            print(f"{path.name} differs: run python3 bench/readme_tables.py", file=sys.stderr)
            return DIFFERS
        write(path, new)
    except ReadmeError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    print(f"{path.name}: rewritten")
    return 0


def read(path: Path) -> str:
    """The page, its line ends as they are."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return file.read()
    except OSError as error:
        raise ReadmeError(f"cannot read {path}: {error.strerror or error}; give --readme") from None
    except UnicodeDecodeError as error:
        raise ReadmeError(f"{path} is not UTF-8: {error}") from None


def fill(page: str, name: str, results: Path) -> str:
    """The page with every block made anew; ``ReadmeError`` names the line that is wrong."""
    out: list[str] = []
    opened: tuple[int, str] | None = None
    for number, line in enumerate(page.splitlines(keepends=True), 1):
        text = line.rstrip("\r\n")
        where = f"{name}:{number}"
        if not _MARK.match(text):
            if opened is None:
                out.append(line)
        elif text == _CLOSE:
            if opened is None:
                raise ReadmeError(f"{where}: {_CLOSE} closes no table")
            opened = None
            out.append(line)
        elif opened is not None:
            raise ReadmeError(_unclosed(name, *opened))
        else:
            opened = (number, _block_name(text, where))
            end = line[len(text) :]
            out += [line, *(f"{made}{end}" for made in BLOCKS[opened[1]](results))]
    if opened is not None:
        raise ReadmeError(_unclosed(name, *opened))
    return "".join(out)


def write(path: Path, page: str) -> None:
    """Aside, then renamed over: the old page or the new one, whatever happens."""
    target = path.resolve()
    aside: str | None = None
    try:
        handle, aside = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        with open(handle, "w", encoding="utf-8", newline="") as file:
            file.write(page)
            file.flush()
            os.fsync(file.fileno())
        shutil.copymode(target, aside)
        Path(aside).replace(target)
    except OSError as error:
        if aside is not None:
            Path(aside).unlink(missing_ok=True)
        raise ReadmeError(f"cannot write {path}: {error.strerror or error}") from None


def _block_name(text: str, where: str) -> str:
    """Of an opening line."""
    known = ", ".join(BLOCKS)
    found = _OPEN.fullmatch(text)
    if found is None:
        raise ReadmeError(
            f"{where}: {text.strip()!r} is no mark; write '<!-- table: NAME -->' or '{_CLOSE}', "
            f"alone on its line, NAME one of {known}"
        )
    if found[1] not in BLOCKS:
        raise ReadmeError(f"{where}: unknown table {found[1]!r}; known are {known}")
    return found[1]


def _unclosed(name: str, number: int, block: str) -> str:
    return f"{name}:{number}: table {block!r} is not closed; end it with {_CLOSE}"


def _difference(old: str, new: str, name: str) -> str:
    made = f"{name} as the results give it"
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), name, made, lineterm="")
    return "".join(f"{line}\n" for line in lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n\n")[0],
        epilog="Exit code 0: they agree. 1: --check found a difference. 2: an error, nothing done.",
    )
    add = parser.add_argument
    add("--check", action="store_true", help="write nothing; print the difference")
    add("--readme", type=Path, metavar="PATH", default=ROOT / "README.md", help="the page")
    add("--results", type=Path, metavar="FOLDER", default=ROOT / "bench/results", help="the JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
