"""Imports point down, data never becomes code, and importing the package costs nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import aimmerge_fast

PACKAGE = Path(aimmerge_fast.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

#: Rooms by level. A room may import itself and what lies on lower levels, nothing beside it.
LEVELS: dict[int, tuple[str, ...]] = {
    0: ("config", "events"),
    1: ("parameters", "memory", "kernels", "reference", "report", "durable"),
    2: ("controller",),
    3: ("merger", "simulate", "doctor"),
    4: ("integrations",),
    5: ("cl", "holistic"),
    6: ("cli",),
}
#: Files that furnish a room of another name.
FURNITURE = {
    **dict.fromkeys(
        ("runahead", "mailbox", "distributed", "groups", "presence", "reader"), "controller"
    ),
    **dict.fromkeys(
        ("agreement", "binding", "fusion", "passes", "protocol", "randomness", "rehearsal"),
        "merger",
    ),
    **dict.fromkeys(("state", "tasks", "wrapping"), "merger"),
    "_native": "kernels",
}
LEVEL_OF = {room: level for level, rooms in LEVELS.items() for room in rooms}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
FORBIDDEN_ATTRIBUTES = {
    *(("torch", "load"), ("os", "system"), ("os", "popen"), ("np", "load"), ("numpy", "load")),
    *(("torch", "save"), ("yaml", "load"), ("subprocess", "getoutput")),
}


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def room_of(module: str) -> str | None:
    """Room of a dotted name inside the package; None for the package itself."""
    first = module.split(".")[0]
    if first in ("", "__init__"):
        return None
    first = aimmerge_fast._HOMES.get(first, first)  # a public name
    room = FURNITURE.get(first, first)
    assert room in LEVEL_OF, f"{module!r} belongs to no room; give it one here"
    return room


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything imported at run time, wherever it stands."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for other in node.orelse:
                yield from imports(other)
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute here"
            whole = node.module or ""
            if whole == "aimmerge_fast":
                yield from ((node.lineno, f"{whole}.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, whole
        yield from imports(node)


def inner(module: str) -> str | None:
    prefix = "aimmerge_fast."
    return module[len(prefix) :] if module.startswith(prefix) else None


def climbs(source: str, text: str) -> list[str]:
    """The imports of a file that do not point down."""
    room = room_of(source.removesuffix(".py").replace("/", "."))
    wrong = []
    for line, module in imports(ast.parse(text)):
        target = inner(module)
        if room is None or target is None or target == "__version__":
            continue
        other = room_of(target)
        if other != room and (other is None or LEVEL_OF[other] >= LEVEL_OF[room]):
            wrong.append(f"{source}:{line} imports {module}")
    return wrong


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path: Path) -> None:
    assert climbs(name_of(path), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("config.py", "from aimmerge_fast import events"),
        ("memory/records.py", "import aimmerge_fast.kernels.layout"),
        ("kernels/eager.py", "def f():\n    from aimmerge_fast.parameters import discover"),
        ("reference/controller.py", "try:\n    from aimmerge_fast.report import x\nfinally: 0"),
        ("mailbox.py", "if 1:\n    from aimmerge_fast.merger import FastAIMMerger"),
        ("simulate/input.py", "from aimmerge_fast import state"),
    ],
)
def test_a_climbing_import_is_seen(source: str, text: str) -> None:
    assert len(climbs(source, text)) == 1


def test_the_lowest_level_is_the_standard_library() -> None:
    for room in LEVELS[0]:
        tree = ast.parse((PACKAGE / f"{room}.py").read_text(encoding="utf-8"))
        outside = {module.split(".")[0] for _, module in imports(tree)} - {"aimmerge_fast"}
        assert outside <= sys.stdlib_module_names


def dangers(text: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            call = node.func
            if isinstance(call, ast.Name) and call.id in FORBIDDEN_CALLS:
                found.append(f"line {node.lineno}: {call.id}()")
            if any(k.arg == "shell" and ast.unparse(k.value) != "False" for k in node.keywords):
                found.append(f"line {node.lineno}: shell=")
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if (node.value.id, node.attr) in FORBIDDEN_ATTRIBUTES:
                found.append(f"line {node.lineno}: {node.value.id}.{node.attr}")
    for line, module in imports(ast.parse(text)):
        if module.split(".")[0] in FORBIDDEN_MODULES or module in ("os.system", "torch.load"):
            found.append(f"line {line}: import {module}")
    return found


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_runs_code_from_data(path: Path) -> None:
    assert dangers(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "text",
    [
        "eval('1')",
        "def f(x):\n    exec(x)",
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load('x')",
        "import os\nos.system('true')",
        "import subprocess\nsubprocess.run('ls', shell=True)",
    ],
)
def test_a_danger_is_seen(text: str) -> None:
    assert len(dangers(text)) == 1


def test_importing_the_package_loads_nothing_heavy() -> None:
    """The command must answer at once; torch is loaded when a name that needs it is used."""
    heavy = ("torch", "numpy", "transformers", "peft", "matplotlib", "datasets")
    code = (
        "import sys, aimmerge_fast, aimmerge_fast.config, aimmerge_fast.events, aimmerge_fast.cli\n"
        f"print([name for name in {heavy!r} if name in sys.modules])\n"
        "aimmerge_fast.AIMConfig()\n"
        "print('torch' in sys.modules)\n"
        "aimmerge_fast.FastAIMMerger\n"
        f"print([name for name in {heavy[2:]!r} if name in sys.modules])\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert done.stdout.splitlines() == ["[]", "False", "[]"]


def test_public_names() -> None:
    for name in aimmerge_fast.__all__:
        assert getattr(aimmerge_fast, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'FastMerger'"):
        aimmerge_fast.FastMerger  # noqa: B018
