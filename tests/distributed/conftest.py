"""One process that forks the ranks of all tests here; see ``zygote``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from aimmerge_fast.durable.tree import load_tree

ROOT = Path(__file__).resolve().parents[2]


class Ranks(NamedTuple):
    """What the ranks of a job came to: exit codes, what they returned (None: nothing), stderr."""

    codes: list[int]
    results: list[Any]
    logs: list[str]


Launch = Callable[..., list[Ranks]]


def job(function: str, world: int, **arguments: Any) -> dict[str, Any]:
    """See ``zygote``; ``store``, ``patience`` and ``limit`` may be added."""
    return {"function": f"tests.distributed.{function}", "world": world, "arguments": arguments}


@pytest.fixture(scope="session")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launch]:
    """``launch(*jobs)`` runs them at the same time and waits for all."""
    script = str(Path(__file__).with_name("zygote.py"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, script],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as zygote:
        assert zygote.stdin is not None
        assert zygote.stdout is not None

        def run(*jobs: dict[str, Any]) -> list[Ranks]:
            placed = [{**job, "folder": str(tmp_path_factory.mktemp("ranks"))} for job in jobs]
            print(json.dumps(placed), file=zygote.stdin, flush=True)
            codes = json.loads(zygote.stdout.readline())
            return [collected(*pair) for pair in zip(placed, codes, strict=True)]

        yield run
        zygote.stdin.close()


def collected(placed: dict[str, Any], codes: list[int]) -> Ranks:
    folder = Path(placed["folder"])
    paths = [folder / f"rank{rank}.safetensors" for rank in range(placed["world"])]
    results = [load_tree(path) if path.is_file() else None for path in paths]
    logs = [path.with_suffix(".log").read_text() for path in paths]
    # what the zygote made outlives its ranks, of which Triton's bindings complain at their end
    return Ranks(codes, results, [log.partition("nanobind: leaked")[0] for log in logs])


def results(ranks: Ranks) -> list[Any]:
    """Of ranks that all ended well."""
    assert set(ranks.codes) == {0}, "\n".join(ranks.logs)[-4000:]
    return ranks.results
