"""The rehearsal memory: a small sample of every earlier task, and iterators over it.

Nothing here touches the global random state: each sample and each permutation comes from a
generator of its own, seeded by names and numbers alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aimmerge_fast.memory.records import (
    Record,
    classes_of,
    fingerprint,
    json_copy,
    loaded_content,
    require_fields,
    require_integer,
    require_records,
    require_task,
)

__all__ = ["RULES", "MemoryStream", "Record", "RehearsalMemory"]

RULES = ("balanced", "released")
_VERSION = 1


class RehearsalMemory:
    """Keeps a share of each task's records and hands them out again.

    Args:
        ratio: share of a task that is kept, in (0, 1]; want = max(1, int(ratio * N)).
        seed: of every sample and every stream.
        rule: ``balanced`` keeps exactly want records: want // classes of each class (all of a
            smaller one) and the rest at random, or all at random where classes exceed want.
            ``released`` is the authors' code: want = int(ratio * N), but of every class at least
            one, which keeps nearly all of a task whose outputs differ from record to record.
        label: key of a record's class, or a function giving it; default the key ``output`` where
            records have it, else ``label``, else no classes. Equal values are one class.

    Raises:
        ValueError: naming the argument, what it may be, and changing nothing.
    """

    def __init__(
        self,
        ratio: float = 0.02,
        seed: int = 42,
        *,
        rule: str = "balanced",
        label: str | Callable[[Record], Any] | None = None,
    ) -> None:
        number = isinstance(ratio, (int, float)) and not isinstance(ratio, bool)
        if not number or not 0 < ratio <= 1:
            raise ValueError(f"ratio={ratio!r} must be a number in (0, 1]; 0.02 keeps 2 %")
        require_integer("seed", seed)
        if rule not in RULES:
            raise ValueError(f"rule={rule!r} is unknown; choose one of {', '.join(RULES)}")
        if not (label is None or isinstance(label, str) or callable(label)):
            raise ValueError(f"label={label!r} must be a key of the records, a function or None")
        self.ratio, self.seed, self.rule, self.label = float(ratio), seed, rule, label
        self._tasks: dict[str, list[Record]] = {}
        self._pool: list[Record] = []

    def __len__(self) -> int:
        """Records kept, over all tasks."""
        return len(self._pool)

    def tasks(self) -> dict[str, int]:
        """Records kept per task, in the order in which the tasks were added."""
        return {task: len(records) for task, records in self._tasks.items()}

    def add(self, task: str, records: Sequence[Record]) -> int:
        """Keep a sample of a task's records (shallow copies, in their order); returns its size.

        The sample depends on seed, task and records alone, not on the tasks added before.

        Raises:
            ValueError: the task is there already; records are empty, no sequence, not mappings
                with string keys, or one has no class; names the record and changes nothing.
        """
        require_task(task)
        if task in self._tasks:
            raise ValueError(f"task {task!r} is in the memory already; add it under another name")
        every = require_records(task, records)
        kept: list[Record] = [dict(every[i]) for i in self._sample(task, every)]
        self._tasks[task] = kept
        self._pool.extend(kept)
        return len(kept)

    def stream(self, name: str, *, fresh: bool = False, salt: int = 0) -> MemoryStream:
        """An iterator over all records with random numbers of its own; see `MemoryStream`."""
        return MemoryStream(self, name, fresh=fresh, salt=salt)

    def fingerprint(self) -> str:
        """sha256 of tasks and records in order; arrays and tensors count by type and values."""
        return fingerprint(self._tasks)

    def state_dict(self) -> dict[str, Any]:
        """Settings and content, JSON-able; ``ValueError`` names a record that JSON cannot hold."""
        content = [
            {"task": task, "records": json_copy(task, records)}
            for task, records in self._tasks.items()
        ]
        settings = {"version": _VERSION} | self._settings()
        return settings | {"content": content, "sha256": self.fingerprint()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace the content; ``ValueError`` names what does not fit, and nothing is changed."""
        fields = {"version": _VERSION} | self._settings()
        require_fields("memory", state, [*fields, "content", "sha256"])
        for field, value in fields.items():
            if state[field] != value:
                raise ValueError(
                    f"memory state has {field}={state[field]!r}, this memory {value!r}; load it "
                    "into a memory of the same settings"
                )
        tasks = loaded_content(state["content"])
        if fingerprint(tasks) != state["sha256"]:
            raise ValueError("memory state is damaged: its content does not match its sha256")
        self._tasks = tasks
        self._pool = [record for records in tasks.values() for record in records]

    def _settings(self) -> dict[str, Any]:
        label = "<function>" if callable(self.label) else self.label
        return {"ratio": self.ratio, "seed": self.seed, "rule": self.rule, "label": label}

    def _sample(self, task: str, records: list[Record]) -> list[int]:
        """Indices to keep, ascending (A.5 #35; A.3 "Memory content" for ``released``)."""
        released = self.rule == "released"
        generator = random.Random(self.seed if released else f"{self.seed}/task/{task}")
        want = int(self.ratio * len(records))
        want = want if released else max(1, want)
        classes: dict[Any, list[int]] = {}
        for index, value in enumerate(classes_of(task, records, self.label)):
            classes.setdefault(value, []).append(index)
        kept: set[int] = set()
        if released or len(classes) <= want:
            quota = max(1, want // len(classes))
            for members in classes.values():
                kept.update(generator.sample(members, min(quota, len(members))))
        rest = [index for index in range(len(records)) if index not in kept]
        kept.update(generator.sample(rest, max(0, want - len(kept))))
        return sorted(kept)


class MemoryStream:
    """A persistent iterator over all records of a memory, in seeded random order.

    ``fresh=False``: the next n of a permutation; a new one starts when fewer than n remain, so
    there is no partial batch, and what remained is dropped. ``fresh=True`` (released): the first n
    of a new permutation at every draw. A memory of at most n records is drawn whole, shuffled. A
    memory that grew starts a new permutation over all its records.

    Permutation k is that of ``random.Random(f"{seed}/{name}/{salt}/{k}")``, so the whole state is
    k, the size it was taken over, and the position in it.
    """

    def __init__(self, memory: RehearsalMemory, name: str, *, fresh: bool, salt: int) -> None:
        if not isinstance(name, str) or not isinstance(fresh, bool):
            raise ValueError(f"stream name={name!r}, fresh={fresh!r} must be a string and a bool")
        require_integer("salt", salt)
        self._memory, self._fresh = memory, fresh
        self._name, self._key = name, f"{memory.seed}/{name}/{salt}"
        self._count = 0  # permutations begun
        self._order: list[int] = []
        self._position = 0

    def draw(self, n: int) -> list[Record]:
        """Up to n records as shallow copies; ``ValueError`` when n < 1 or the memory is empty."""
        require_integer("n", n, low=1)
        size = len(self._memory)
        if size == 0:
            raise ValueError(
                f"stream {self._name!r} has nothing to draw from: the memory is empty; add a task "
                "to it, or train without a memory"
            )
        n = min(n, size)
        if self._fresh or len(self._order) != size or size - self._position < n:
            self._count += 1
            self._order = self._permutation(self._count, size)
            self._position = 0
        chosen = self._order[self._position : self._position + n]
        self._position += n
        return [dict(self._memory._pool[index]) for index in chosen]

    def state_dict(self) -> dict[str, Any]:
        """JSON-able; the stream that loads it draws the same records from the same memory."""
        return {
            "version": _VERSION,
            "key": self._key,
            "fresh": self._fresh,
            "count": self._count,
            "size": len(self._order),
            "position": self._position,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where ``state_dict`` was taken; ``ValueError`` when it is of another stream."""
        own = self.state_dict()
        require_fields("stream", state, list(own))
        for field in ("version", "key", "fresh"):
            if state[field] != own[field]:
                raise ValueError(
                    f"stream state has {field}={state[field]!r}, this stream {own[field]!r}; make "
                    "the stream with the same seed, name, salt and kind"
                )
        for field in ("count", "size", "position"):
            require_integer(f"stream state: {field}", state[field], low=0)
        count, size, position = state["count"], state["size"], state["position"]
        if position > size or (count == 0) != (size == 0) or size > len(self._memory):
            raise ValueError(
                f"stream state (count={count}, size={size}, position={position}) does not fit a "
                f"memory of {len(self._memory)} records; load the memory's own state first"
            )
        self._order = self._permutation(count, size)
        self._count, self._position = count, position

    def _permutation(self, count: int, size: int) -> list[int]:
        order = list(range(size))
        random.Random(f"{self._key}/{count}").shuffle(order)
        return order
