"""Trains one task again and again in processes that are killed, and counts what went wrong.

``python -m tests.integrations.kill_worker FOLDER KILLS [trusting]`` prints one line of JSON. With
``trusting`` no checkpoint is looked into, and the first thing that goes wrong ends it.

Every life is a fork of this process, which has imported and trained everything once: it takes as
long as the training. It goes on with the newest checkpoint, or begins where there is none.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import random
import select
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer_utils import get_last_checkpoint

from aimmerge_fast.durable import Broken, manifest, verify
from aimmerge_fast.integrations.transformers import checkpoints as ours
from aimmerge_fast.integrations.transformers import run_folder
from tests.integrations.resumable import STEPS, WRITTEN, Run, checkpoint, content, differences

SEED = 20
LIMITS = (None, 1, 2)
#: what a save calls; every second life ends in one of them, the others at any moment
PLACES: tuple[tuple[Any, str], ...] = (
    (TrainerState, "save_to_json"),
    (Trainer, "_save_optimizer_and_scheduler"),
    (Trainer, "_save_rng_state"),
    (ours, "write_part"),
    (ours, "seal"),
    (manifest, "rename"),
)
Death = float | tuple[Any, str, int] | None  # after seconds; in a save, which one; never


class Telling(TrainerCallback):
    """Comes after ours: a step that it tells of is sealed."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def tell(self, *words: Any) -> None:
        os.write(self._pipe, (" ".join(map(str, words)) + "\n").encode())

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.tell("began", state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.tell("sealed", state.global_step)


def die_in(owner: Any, name: str, saves: int) -> None:
    """From now on the ``saves``-th call of a function is the end of this process."""
    original = getattr(owner, name)
    calls = itertools.count(1)

    def last(*args: Any) -> Any:
        if next(calls) == saves:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args)

    setattr(owner, name, last)


def live(folder: Path, limit: int | None, pipe: int, death: Death) -> None:
    """One life; never returns."""
    telling = Telling(pipe)
    if isinstance(death, tuple):
        die_in(*death)
    try:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        run = Run(folder, telling, save_total_limit=limit)
        run.train(resume=get_last_checkpoint(str(folder)) is not None)
        telling.tell("done", STEPS)
    except BaseException as error:
        telling.tell("failed", type(error).__name__, str(error).replace("\n", " ")[:300])
    finally:
        os._exit(0)


def one_life(folder: Path, limit: int | None, death: Death) -> list[list[str]]:
    """Fork a life that ends by ``death``; what it told."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        live(folder, limit, writer, death)
    os.close(writer)
    told, until = b"", time.monotonic() + death if isinstance(death, float) else None
    while True:
        left = None if until is None else max(0.0, until - time.monotonic())
        if not select.select([reader], [], [], left)[0]:
            os.kill(child, signal.SIGKILL)
            until = None
            continue
        piece = os.read(reader, 65536)
        if not piece:
            break
        told += piece
    os.waitpid(child, 0)
    os.close(reader)
    return [line.split(" ", 1) for line in told.decode().splitlines()]


class Campaign:
    """Runs one after another, each killed until it is done."""

    def __init__(self, folder: Path, whole: dict[str, Any], seconds: float) -> None:
        self.counts = dict.fromkeys(("kills", "runs", "stuck", "lost", "unequal"), 0)
        self.counts |= {"newest unsealed": 0, "newest lacks files": 0}
        self.messages: list[str] = []
        self._folder, self._whole, self._seconds = folder, whole, seconds
        self._draw = random.Random(SEED)

    def run(self, number: int, kills: int) -> None:
        folder = self._folder / f"run{number}"
        folder.mkdir()
        limit, sealed, done = LIMITS[number % len(LIMITS)], 0, False
        while not done:
            death = self._next_death() if self.counts["kills"] < kills else None
            told = dict(reversed(one_life(folder, limit, death)))
            if "failed" in told:
                self._wrong("stuck", told["failed"])
                return
            if int(told.get("began", sealed)) < sealed:
                self._wrong("lost", f"{sealed} were sealed, the next life began at {told['began']}")
            sealed = max(sealed, int(told.get("sealed", 0)))
            done = "done" in told
            self.counts["kills"] += not done
            self._look_at_newest(folder)
        self.counts["runs"] += 1
        different = differences(content(checkpoint(folder)), self._whole)
        if different:
            self._wrong("unequal", f"run {number}: {different[:3]}")
        shutil.rmtree(folder)

    def _next_death(self) -> Death:
        turn, by_time = divmod(self.counts["kills"], 2)
        if by_time:
            return self._draw.uniform(0, self._seconds)
        return (*PLACES[turn % len(PLACES)], self._draw.randint(1, 3))

    def _wrong(self, what: str, message: str) -> None:
        self.counts[what] += 1
        self.messages.append(message)

    def _look_at_newest(self, folder: Path) -> None:
        """What a Trainer without us would resume from."""
        newest = get_last_checkpoint(str(folder))
        if newest is None:
            return
        try:
            verify(Path(newest))
        except Broken:
            self.counts["newest unsealed"] += 1
            sizes = [_size(Path(newest) / name) for name in (*WRITTEN, "trainer_state.json")]
            self.counts["newest lacks files"] += 0 in sizes


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def trust(folder: Path, added: str) -> dict[str, Any]:
    """A reader that takes what it finds."""
    try:
        state = json.loads((folder / "trainer_state.json").read_text())
        life = state["stateful_callbacks"]["AIMMergeMark"]["attributes"]["life"]
    except (OSError, ValueError, KeyError):
        life, state = "", {"global_step": -1}
    step = state["global_step"]
    return {"life": life, "global_step": step, "world": 1, "resumable": True}


def main(folder: Path, kills: int, trusting: bool) -> None:
    torch.set_num_threads(1)
    began = time.monotonic()
    for name in ("warm", "whole"):
        began = time.monotonic()
        Run(folder / name).train()
    seconds = time.monotonic() - began
    # of threads that a fork would lose; jemalloc, which pyarrow brings, starts its own again
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    assert len([name for name in names if not name.startswith("jemalloc")]) == 1, names
    gc.freeze()  # so that a fork copies only what it changes
    if trusting:
        run_folder.verify = trust  # type: ignore[assignment]
    campaign = Campaign(folder, content(checkpoint(folder / "whole")), seconds)
    number = 0
    while campaign.counts["kills"] < kills and not (trusting and campaign.messages):
        campaign.run(number, kills)
        number += 1
    took = {"seconds of a run": seconds, "seconds": time.monotonic() - began}
    print(json.dumps({**campaign.counts, "messages": campaign.messages, **took}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), "trusting" in sys.argv[3:])
