"""Which records a memory keeps: one function per rule, all of them pure and seeded.

Rules of a ratio keep a share of each task for good. Rules of a size keep so many records in all, so
older tasks give records up when a new one comes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from aimmerge_fast.memory.records import Record, classes_of

Label = str | Callable[[Record], object] | None

RATIO_RULES = ("balanced", "released", "uniform")
SIZE_RULES = ("reservoir", "task_balanced")
RULES = RATIO_RULES + SIZE_RULES


def share(
    rule: str, seed: int, ratio: float, label: Label, task: str, records: list[Record]
) -> list[int]:
    """Indices that a rule of a ratio keeps, ascending; by seed, task and records alone.

    A.5 #35; A.3 "Memory content" for ``released``.
    """
    released = rule == "released"
    generator = random.Random(seed if released else f"{seed}/task/{task}")
    want = int(ratio * len(records))
    want = want if released else max(1, want)
    kept: set[int] = set()
    if rule != "uniform":
        classes: dict[object, list[int]] = {}
        for index, value in enumerate(classes_of(task, records, label)):
            classes.setdefault(value, []).append(index)
        if released or len(classes) <= want:
            quota = max(1, want // len(classes))
            for members in classes.values():
                kept.update(generator.sample(members, min(quota, len(members))))
    rest = [index for index in range(len(records)) if index not in kept]
    kept.update(generator.sample(rest, max(0, want - len(kept))))
    return sorted(kept)


def reservoir(
    seed: int, size: int, seen: int, held: Mapping[str, int], task: str, count: int
) -> tuple[dict[str, list[int]], list[int]]:
    """What to keep of each held task and of the new one's ``count`` records, as indices.

    Of ``seen`` records before, ``held`` are left, chosen with equal probability; so are these of
    all ``seen + count``: a uniform sample of them says how many are new, and as many leave.
    """
    generator = random.Random(f"{seed}/reservoir/{task}/{seen}")
    sample = generator.sample(range(seen + count), min(size, seen + count))
    new = sorted(index - seen for index in sample if index >= seen)
    places = [(name, index) for name, kept in held.items() for index in range(kept)]
    stay = generator.sample(places, len(sample) - len(new))
    return {name: sorted(i for other, i in stay if other == name) for name in held}, new


def task_balanced(
    seed: int, size: int, held: Mapping[str, int], task: str, count: int
) -> tuple[dict[str, list[int]], list[int]]:
    """As ``reservoir``, by equal shares of the tasks; the first tasks have the odd ones.

    What a task smaller than its share leaves over goes to the newest one.
    """
    tasks = len(held) + 1
    stay: dict[str, list[int]] = {}
    for place, (name, kept) in enumerate(held.items()):
        due = size // tasks + (place < size % tasks)
        generator = random.Random(f"{seed}/shrink/{name}/{tasks}")
        stay[name] = sorted(generator.sample(range(kept), min(due, kept)))
    room = size - sum(map(len, stay.values()))
    generator = random.Random(f"{seed}/task/{task}")
    return stay, sorted(generator.sample(range(count), min(room, count)))
