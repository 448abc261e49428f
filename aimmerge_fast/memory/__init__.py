"""The rehearsal memory: a small sample of every earlier task, and iterators over it.

Nothing here touches the global random state: each sample and each permutation comes from a
generator of its own, seeded by names and numbers alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aimmerge_fast.memory import rules
from aimmerge_fast.memory.records import (
    Record,
    fingerprint,
    json_copy,
    loaded_content,
    require_fields,
    require_integer,
    require_records,
    require_task,
)
from aimmerge_fast.memory.rules import RULES

__all__ = ["RULES", "MemoryStream", "Record", "RehearsalMemory"]

_VERSION = 1


class RehearsalMemory:
    """Keeps some of each task's records and hands them out again.

    Args:
        ratio: share of a task that is kept, in (0, 1]; want = max(1, int(ratio * N)). The rules of
            a size do not read it.
        seed: of every sample and every stream.
        rule: ``balanced`` keeps exactly want records: want // classes of each class (all of a
            smaller one) and the rest at random, or all at random where classes exceed want.
            ``released`` is the authors' code: want = int(ratio * N), but of every class at least
            one, which keeps nearly all of a task whose outputs differ from record to record.
            ``uniform`` keeps want records at random, whatever their classes.
            ``reservoir`` keeps ``size`` records in all, every record that was ever added with the
            same probability. ``task_balanced`` keeps ``size`` in all, as many of each task; the
            first tasks have the odd ones. Under both, records leave when a task is added.
        size: records in all; for ``reservoir`` and ``task_balanced``, which need it.
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
        size: int | None = None,
        label: str | Callable[[Record], Any] | None = None,
    ) -> None:
        number = isinstance(ratio, (int, float)) and not isinstance(ratio, bool)
        if not number or not 0 < ratio <= 1:
            raise ValueError(f"ratio={ratio!r} must be a number in (0, 1]; 0.02 keeps 2 %")
        require_integer("seed", seed)
        if rule not in RULES:
            raise ValueError(f"rule={rule!r} is unknown; choose one of {', '.join(RULES)}")
        if (size is not None) != (rule in rules.SIZE_RULES):
            raise ValueError(
                f"rule={rule!r} with size={size!r}: size belongs to the rules "
                f"{' and '.join(rules.SIZE_RULES)}, which need it"
            )
        if size is not None:
            require_integer("size", size, low=1)
        if not (label is None or isinstance(label, str) or callable(label)):
            raise ValueError(f"label={label!r} must be a key of the records, a function or None")
        self.ratio, self.seed, self.rule, self.label = float(ratio), seed, rule, label
        self.size = size
        self._seen = 0  # records that were offered, for the reservoir
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

        Under the rules of a ratio the sample depends on seed, task and records alone, not on the
        tasks added before; under those of a size, earlier tasks give records up.

        Raises:
            ValueError: the task is there already; records are empty, no sequence, not mappings
                with string keys, or one has no class; names the record and changes nothing.
        """
        require_task(task)
        if task in self._tasks:
            raise ValueError(f"task {task!r} is in the memory already; add it under another name")
        every = require_records(task, records)
        stay, chosen = self._sample(task, every)
        for name, places in stay.items():
            self._tasks[name] = [self._tasks[name][place] for place in places]
        self._tasks[task] = [dict(every[index]) for index in chosen]
        self._seen += len(every)
        self._pool = [record for records in self._tasks.values() for record in records]
        return len(chosen)

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
        seen = {} if self.size is None else {"seen": self._seen}
        return settings | seen | {"content": content, "sha256": self.fingerprint()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace the content; ``ValueError`` names what does not fit, and nothing is changed."""
        fields = {"version": _VERSION} | self._settings()
        seen = [] if self.size is None else ["seen"]
        require_fields("memory", state, [*fields, *seen, "content", "sha256"])
        for field in seen:
            require_integer(f"memory state: {field}", state[field], low=0)
        for field, value in fields.items():
            if state[field] != value:
                raise ValueError(
                    f"memory state has {field}={state[field]!r}, this memory {value!r}; load it "
                    "into a memory of the same settings"
                )
        tasks = loaded_content(state["content"], may_be_empty=self.size is not None)
        if fingerprint(tasks) != state["sha256"]:
            raise ValueError("memory state is damaged: its content does not match its sha256")
        self._tasks, self._seen = tasks, state.get("seen", 0)
        self._pool = [record for records in tasks.values() for record in records]

    def _settings(self) -> dict[str, Any]:
        label = "<function>" if callable(self.label) else self.label
        settings = {"ratio": self.ratio, "seed": self.seed, "rule": self.rule, "label": label}
        return settings if self.size is None else settings | {"size": self.size}

    def _sample(self, task: str, records: list[Record]) -> tuple[dict[str, list[int]], list[int]]:
        """What to keep of each task that is here, where any leave, and of the new one."""
        if self.size is None:
            own = (self.rule, self.seed, self.ratio, self.label)
            return {}, rules.share(*own, task, records)
        held, count = self.tasks(), len(records)
        if self.rule == "reservoir":
            return rules.reservoir(self.seed, self.size, self._seen, held, task, count)
        return rules.task_balanced(self.seed, self.size, held, task, count)


class MemoryStream:
    """A persistent iterator over all records of a memory, in seeded random order.

    ``fresh=False``: the next n of a permutation; a new one starts when fewer than n remain, so
    there is no partial batch, and what remained is dropped. ``fresh=True`` (released): the first n
    of a new permutation at every draw. A memory of at most n records is drawn whole, shuffled. A
    memory that a task was added to starts a new permutation over all its records.

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
        self._tasks = 0  # in the memory when the permutation was taken

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
        changed = len(self._order) != size or self._tasks != len(self._memory._tasks)
        if self._fresh or changed or size - self._position < n:
            self._count += 1
            self._order = self._permutation(self._count, size)
            self._position, self._tasks = 0, len(self._memory._tasks)
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
        self._tasks = len(self._memory._tasks)

    def _permutation(self, count: int, size: int) -> list[int]:
        order = list(range(size))
        random.Random(f"{self._key}/{count}").shuffle(order)
        return order
