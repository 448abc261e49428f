"""Checkpoints of a training loop, one sealed folder each: ``step-<n>``, ``step-<n>-2`` if repeated.

Below the folder given to ``Checkpoints`` lie::

    lock                  held by the process that saves
    step-120/aimmerge/    manifest.json with {"step": 120, "turn": 1, "parts": ["rank0", …]}, and
                          rank0.safetensors, … with {"step": 120, "tree": what was saved}
    .step-125.part/       one that is being written, or removed; never loaded
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from aimmerge_fast.durable import manifest
from aimmerge_fast.durable.files import Broken, make_folder, rename
from aimmerge_fast.durable.locks import Lock

log = logging.getLogger(__name__)
MAIN = "rank0"
_FOLDER = re.compile(r"step-(0|[1-9][0-9]*)(?:-([2-9]|[1-9][0-9]+))?")
_Key = tuple[int, int]  # (step, turn): which save of this step it is


class Checkpoints:
    """The checkpoints of one training run, the newest ``keep`` of them.

    ::

        checkpoints = Checkpoints("out", keep=2)
        found = checkpoints.load()              # (step, tree) of the newest complete one, or None
        ...
        checkpoints.save(step, {"model": model.state_dict(), "merger": merger.state_dict(), ...})

    A tree is dicts with string keys, lists, JSON scalars and tensors (``packed_optimizer`` makes
    one of an optimizer). When ``save`` returns, the checkpoint survives a crash of the process and
    of the machine; a crash before leaves the ones before it as they were.

    Retention removes what is older than the newest ``keep`` complete checkpoints, after the new one
    is durable. A broken one is not counted and stays until so many complete ones are newer.

    Raises: ValueError unless ``keep`` is at least 1.
    """

    def __init__(self, folder: str | Path, keep: int = 2) -> None:
        if type(keep) is not int or keep < 1:
            raise ValueError(f"keep={keep!r}: how many checkpoints to keep, at least 1")
        self.folder, self.keep = Path(folder), keep
        self._lock: Lock | None = None
        self._newest: _Key = (-1, 0)  # newest complete one, known once the lock is held
        self._complete: set[_Key] = set()  # saved or verified by this process

    def save(
        self,
        step: int,
        tree: Mapping[str, Any],
        *,
        part: str = MAIN,
        barrier: Callable[[], None] | None = None,
    ) -> Path:
        """Save ``tree`` as the state after ``step``; returns the folder. Durable on return.

        With several processes each saves a part of its own (``rank0``, ``rank1``, …) of the same
        step and gives a ``barrier`` that all of them pass, which raises if one does not come:
        ``torch.distributed.barrier``. ``rank0`` seals and removes.

        Raises:
            TypeError, ValueError: a tree that cannot be saved, a step before the newest complete
                one, another process that saves here. OSError: naming the file; the checkpoints
                before are as they were.
        """
        if type(step) is not int or step < 0:
            raise ValueError(f"step must be an integer of at least 0, got {step!r}")
        if part != MAIN and barrier is None:
            raise ValueError(f"part {part!r} needs barrier=: {MAIN!r} waits for it before it seals")
        wait = barrier or (lambda: None)
        aside = self.folder / f".step-{step}.part"
        key = (step, self._turn(step))
        if part == MAIN:
            self._begin(step)
        wait()
        manifest.write_part(aside, part, {"step": step, "tree": tree})
        wait()
        if part == MAIN:
            info = {"step": step, "turn": key[1], "parts": manifest.parts(aside)}
            manifest.seal(aside, info)
            rename(aside, self.folder / _name(key))
            self._newest = key
            self._complete.add(key)
            self._retain()
        wait()
        return self.folder / _name(key)

    def load(self, *, part: str = MAIN) -> tuple[int, dict[str, Any]] | None:
        """(step, tree) of the newest complete checkpoint; None when none was ever saved here.

        A newer one that is broken is passed over with a warning that names the file and the
        reason. Nothing is written, so it may be called beside a process that saves.

        Raises:
            Broken: there are checkpoints, and all are broken. ValueError: no part of that name.
        """
        keys = self._keys()
        broken: list[Broken] = []
        for key in keys:
            try:
                tree = self._read(key, part)
            except Broken as error:
                broken.append(error)
                continue
            self._complete.add(key)
            for reason in broken:
                log.warning("checkpoint passed over, going on from %s: %s", _name(key), reason)
            return key[0], tree
        if broken:
            raise Broken(
                f"no checkpoint in {self.folder} is complete; remove them all to start anew: "
                + "; ".join(map(str, broken))
            )
        return None

    def close(self) -> None:
        """Let other processes save here; the end of this process does it too."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    # ---- internals ---------------------------------------------------------------------------

    def _keys(self) -> list[_Key]:
        """The checkpoints there are, newest first, complete or not."""
        if not self.folder.is_dir():
            return []
        found = [_FOLDER.fullmatch(path.name) for path in self.folder.iterdir()]
        return sorted(((int(m[1]), int(m[2] or 1)) for m in found if m), reverse=True)

    def _turn(self, step: int) -> int:
        return max((turn for other, turn in self._keys() if other == step), default=0) + 1

    def _verify(self, key: _Key) -> list[str]:
        """The parts of a checkpoint whose files are as saved, and at their place."""
        folder = self.folder / _name(key)
        if folder.is_symlink():
            raise Broken(f"{folder} is a link; a checkpoint is a folder")
        info = manifest.verify(folder)
        parts = manifest.parts(folder)
        if info != {"step": key[0], "turn": key[1], "parts": parts}:
            raise Broken(
                f"{folder / manifest.SIDE / manifest.MANIFEST} is of another checkpoint: {info}"
            )
        return parts

    def _read(self, key: _Key, part: str) -> dict[str, Any]:
        self._verify(key)
        folder = self.folder / _name(key)
        saved = manifest.read_part(folder, part)
        tree = saved.get("tree")
        if saved.get("step") != key[0] or not isinstance(tree, dict):
            path = folder / manifest.SIDE / f"{part}.safetensors"
            raise Broken(f"{path} is of step {saved.get('step')!r}, not {key[0]}")
        return tree

    def _begin(self, step: int) -> None:
        """Take the lock; remove what a process that died left."""
        if self._lock is None:
            make_folder(self.folder)
            self._lock = Lock(self.folder / "lock")
            complete = (key for key in self._keys() if self._is_complete(key))
            self._newest = next(complete, self._newest)
        if step < self._newest[0]:
            raise ValueError(
                f"{self.folder} has {_name(self._newest)}, which is newer than step {step}: load() "
                "it and go on from there, or save to another folder"
            )
        for leftover in self.folder.glob(".step-*.part"):
            shutil.rmtree(leftover)

    def _is_complete(self, key: _Key) -> bool:
        if key not in self._complete:
            try:
                self._verify(key)
            except Broken:
                return False
            self._complete.add(key)
        return True

    def _retain(self) -> None:
        """Remove what is too old; what cannot be removed is a warning, for the new one is safe."""
        complete = 0
        for key in self._keys():
            folder = self.folder / _name(key)
            try:
                if complete < self.keep:
                    complete += self._is_complete(key)
                    continue
                aside = self.folder / f".{folder.name}.part"
                folder.replace(aside)  # half removed it must not look like a checkpoint
                shutil.rmtree(aside)
                self._complete.discard(key)
            except OSError as error:
                log.warning(
                    "old checkpoint %s could not be looked at or removed: %s", folder, error
                )


def _name(key: _Key) -> str:
    step, turn = key
    return f"step-{step}" if turn == 1 else f"step-{step}-{turn}"
