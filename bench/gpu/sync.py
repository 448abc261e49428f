"""Stage ``sync``: synchronising calls, launches and waits; determinism; more than 2^32 entries."""

from __future__ import annotations

import sys

from aimmerge_fast import kernels
from gpu import calls, large, repeats, stage, waits
from gpu.stage import NOT_RUN, Found, Stage
from overhead.ours import KERNELS


def run(given: Stage) -> None:
    usable = []
    for name in KERNELS:
        reason = kernels.available(given.device)[name]
        if reason is None:
            usable.append(name)
        else:
            given.add(name, Found(reason, NOT_RUN))
    calls.run(given, usable)
    for name in usable:
        waits.run(given, name)
    for room in (repeats, large):
        for name in usable:
            room.run(given, name)


def main(arguments: list[str] | None = None) -> int:
    return stage.main("sync", run, arguments)


if __name__ == "__main__":
    sys.exit(main())
