"""Runs of a training loop that are killed and resumed, each forked from one prepared process.

``python -m tests.durable.killed_training '{"folder": …, "kills": …, "seed": …, "loop": …}'`` prints
what it saw as JSON. It imports everything first and keeps to one thread, then forks a run
at a time; a run says on a pipe what it loaded and, after each durable save, which one.
"""

from __future__ import annotations

import collections
import gc
import hashlib
import json
import logging
import mmap
import os
import random
import select
import shutil
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from aimmerge_fast.durable import Checkpoints
from tests.durable.loops_on_disk import LOOPS, DiskLoop

RECORD = struct.Struct("=cq32s")  # what happened, number of the save, digest of its tree
PAUSE = 0.006
SAVING, MERGING = 0, 1  # bytes that a run shares with us


class Run:
    """One process that trains from the newest checkpoint to the end, as far as it is let."""

    def __init__(self, folder: Path | None, kind: str, sabotage: str, flags: mmap.mmap) -> None:
        flags[SAVING] = flags[MERGING] = 0
        self.flags, self.sabotage = flags, sabotage
        self.pipe, writer = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(writer)
            return
        try:
            self.writer = writer
            logging.getLogger("aimmerge_fast.durable").addHandler(Tell(self.say))
            self.train(folder, kind)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    def train(self, folder: Path | None, kind: str) -> None:
        kept = RemovesFirst if self.sabotage == "removes first" else Checkpoints
        self.checkpoints = kept(folder, keep=2) if folder is not None else None
        found = self.checkpoints.load() if self.checkpoints is not None else None
        loop = LOOPS[kind](self.save, self.merging)
        if found is not None:
            loop.load(found[1])
        self.say(b"L", found[0] if found else -1, digest(found[1]) if found else b"")
        loop.go()
        self.say(b"E", 0, digest(loop.tree()))

    def save(self, number: int, loop: DiskLoop) -> None:
        tree = loop.tree()
        if self.checkpoints is None:
            self.say(b"S", number, digest(tree))
            return
        self.flags[SAVING] = 1
        if self.sabotage == "acknowledges early":
            self.say(b"S", number)
        self.checkpoints.save(number, tree)
        self.flags[SAVING] = 0
        if self.sabotage != "acknowledges early":
            self.say(b"S", number)

    def merging(self, inside: bool) -> None:
        self.flags[MERGING] = inside

    def say(self, what: bytes, number: int = 0, value: bytes = b"") -> None:
        os.write(self.writer, RECORD.pack(what, number, value))

    # ---- seen from outside -------------------------------------------------------------------

    def heard(self) -> Iterator[tuple[bytes, int, bytes]]:
        while content := os.read(self.pipe, RECORD.size):  # a record is written at once
            yield RECORD.unpack(content)

    def ended(self) -> int:
        os.close(self.pipe)
        return os.waitpid(self.pid, 0)[1]


class RemovesFirst(Checkpoints):
    """Makes room before it saves: what a test of the test needs."""

    def _begin(self, step: int) -> None:
        super()._begin(step)
        for old in self.folder.glob("step-*"):
            shutil.rmtree(old)


class Tell(logging.Handler):
    def __init__(self, say: Callable[..., None]) -> None:
        super().__init__(logging.WARNING)
        self.say = say

    def emit(self, record: logging.LogRecord) -> None:
        self.say(b"W")


def digest(tree: dict[str, Any]) -> bytes:
    """32 bytes that say whether two trees hold the same bits."""
    found = hashlib.sha256()

    def text(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            found.update(value.detach().reshape(-1).view(torch.uint8).numpy().tobytes())
            return [str(value.dtype), list(value.shape)]
        raise TypeError(type(value))

    found.update(json.dumps(tree, default=text).encode())
    return found.digest()


def prepare() -> None:
    """Let torch import what it imports late; a backward pass here would forbid it to the runs."""
    torch.set_num_threads(1)
    for kind in LOOPS:
        loop = LOOPS[kind](lambda *_: None, lambda *_: None)
        for parameter in loop.loop.parameters:
            parameter.grad = torch.zeros_like(parameter)
        loop.loop.optimizer.step()
        digest(loop.tree())
    gc.collect()
    gc.freeze()  # else a run's first collection copies every page


def whole(kind: str, flags: mmap.mmap) -> tuple[dict[int, bytes], bytes]:
    """Digests of what an uninterrupted run would save, which saves nothing; and of its end."""
    run = Run(None, kind, "", flags)
    said = list(run.heard())
    assert run.ended() == 0
    saved = {number: value for what, number, value in said if what == b"S"}
    return saved, next(value for what, _, value in said if what == b"E")


class Chain:
    """Runs in one folder, killed one after the other until one of them reaches the end."""

    def __init__(self, kind: str, folder: Path, result: collections.Counter[str]) -> None:
        self.kind, self.folder, self.result = kind, folder, result
        self.acknowledged, self.loaded = -1, -1

    def run(self, dice: random.Random, expected: Any, sabotage: str, flags: mmap.mmap) -> bool:
        """One run, killed at a random moment; whether it reached the end before."""
        run = Run(self.folder, self.kind, sabotage, flags)
        records, pause = dice.randrange(5), dice.random()  # how much of it is let live
        finished, started = False, time.monotonic()
        after = started + (60 if records else 0.02 * pause)
        while True:
            ready = select.select([run.pipe], [], [], max(0.0, after - time.monotonic()))[0]
            if not ready:
                os.kill(run.pid, signal.SIGKILL)
                break
            content = os.read(run.pipe, RECORD.size)
            if not content:
                break
            finished |= self.heard(*RECORD.unpack(content), expected)
            records -= 1
            if records == 0:  # in the midst of what follows, however fast this machine is
                after = time.monotonic() + 2 * pause * PAUSE
        for said in run.heard():
            finished |= self.heard(*said, expected)
        status = run.ended()
        if os.WIFSIGNALED(status):
            self.result["kills"] += 1
            self.result["in a save"] += flags[SAVING]
            self.result["in a merge"] += flags[MERGING]
        failed = not (finished or os.WIFSIGNALED(status))
        self.result["failed runs"] += failed
        return finished or failed

    def heard(self, what: bytes, number: int, value: bytes, expected: Any) -> bool:
        saved, end = expected
        if what == b"S":
            self.acknowledged = number
        elif what == b"W":
            self.result["warnings"] += 1
        elif what == b"L":
            self.result["lost"] += number < self.acknowledged
            self.result["unknown"] += number >= 0 and number not in saved
            self.result["other bits"] += number >= 0 and saved.get(number) != value
            self.result["resumed"] += number >= 0
        else:
            self.result["other ends"] += value != end
            self.result["ends"] += 1
        return what == b"E"


def main(folder: str, kills: int, seed: int, loop: str, sabotage: str = "") -> None:
    prepare()
    flags, dice = mmap.mmap(-1, mmap.PAGESIZE), random.Random(seed)
    expected = whole(loop, flags)
    result: collections.Counter[str] = collections.Counter()
    start = time.monotonic()

    def enough() -> bool:
        found = sabotage and result["lost"]
        return bool(result["kills"] >= kills or result["failed runs"] or found)

    while not enough():
        result["chains"] += 1
        place = Path(folder) / f"{loop}-{result['chains']}"
        one = Chain(loop, place, result)
        while not one.run(dice, expected, sabotage, flags):
            if sabotage and enough():
                break
        shutil.rmtree(place)
    gc.unfreeze()  # else torch's modules complain at exit of what was left
    result["saves of a whole run"] = len(expected[0])
    print(json.dumps({**result, "seconds": round(time.monotonic() - start, 1)}))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
