"""Records of a memory beside a Trainer: as batches like its own, and in its checkpoints."""

from __future__ import annotations

from typing import Any

from aimmerge_fast.memory import RehearsalMemory
from aimmerge_fast.passes import Collate


def rows_collate(loader: Any) -> Collate:
    """The loader's collator, which gets the columns that the loader's dataset has.

    The Trainer takes the others out of a dataset before it is loaded, not out of memory records.
    """
    columns = getattr(loader.dataset, "column_names", None)
    if not columns:
        return loader.collate_fn  # type: ignore[no-any-return]
    kept = frozenset(columns)

    def taken(row: Any) -> dict[str, Any]:
        found = {key: value for key, value in dict(row).items() if key in kept}
        if not found:
            raise ValueError(
                f"a record of the memory has {', '.join(map(repr, row)) or 'no columns'}, and the "
                f"trainer's batches are made of {', '.join(map(repr, sorted(kept)))}; fill it by "
                "memory.add(name, trainer.train_dataset), not from the rows that the trainer got"
            )
        return found

    return lambda records: loader.collate_fn([taken(row) for row in records])


def plain(memory: RehearsalMemory) -> dict[str, Any] | None:
    """The memory as JSON, or None where its records hold what JSON does not: tensors, arrays."""
    try:
        return memory.state_dict()
    except ValueError:
        return None
