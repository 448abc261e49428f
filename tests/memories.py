"""Small rehearsal memories for tests."""

from __future__ import annotations

from aimmerge_fast.memory import Record, RehearsalMemory


def numbered(count: int, classes: int = 1, key: str = "output") -> list[Record]:
    return [{"id": i, key: f"class {i % classes}"} for i in range(count)]


def ids(records: list[Record]) -> list[int]:
    return [record["id"] for record in records]


def content(memory: RehearsalMemory) -> list[Record]:
    """All records in their order, by way of the public state."""
    tasks = memory.state_dict()["content"]
    return [record for task in tasks for record in task["records"]]


def filled(count: int, *, seed: int = 42) -> RehearsalMemory:
    memory = RehearsalMemory(ratio=1.0, seed=seed)
    if count:
        memory.add("task", numbered(count))
    return memory
