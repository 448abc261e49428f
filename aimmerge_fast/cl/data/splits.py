"""Which records train, which select and which test, and what a table must say about it.

``faithful`` leaves the released splits as they are. ``repaired`` keeps selection off the test set:

- Dev records that are also in test leave dev.
- Where (almost) nothing would be left, dev is held out of train instead: at most a tenth of it.
  Halving test was the alternative. Test then stays whole, so scores stay comparable with published
  ones (SuperNI has 16 to 100 test items; halves would move by 2 to 12 points an item), and the
  10 % is what the released code holds out for its single-task runs. It costs that part of train.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from aimmerge_fast.cl.data.records import Record

VARIANTS = ("repaired", "faithful")
_KEPT = 0.1  # dev must keep this part of its records, or it is held out of train
_HELD = 10  # one in so many train records
_DEV_SIZE = 500  # of the released preprocessing

Splits = dict[str, list[Record]]


def check_variant(variant: str) -> str:
    """``variant`` if it is known, else ``ValueError``."""
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r} is not known; known: {', '.join(VARIANTS)}")
    return variant


def assemble(
    name: str, splits: Splits, variant: str, seed: int, selects: bool = True
) -> tuple[Splits, list[str]]:
    """``train``, ``dev`` and ``test`` of a task and the notes on them; the arguments are kept.

    Without ``selects`` nothing is held out of train: dev is empty where it would have been.
    """
    key = f"{seed}/{name}"
    notes: list[str] = []
    if "whole" in splits:
        splits, note = _divide(splits["whole"], key)
        notes.append(note)
    train, dev, test = splits["train"], splits.get("dev"), splits.get("test")
    if test is None:
        assert dev is not None  # the layout asks for one of the two
        dev, test = halves(dev, key)
        notes.append(
            f"no test file: half of dev ({len(dev)}) selects, the other half ({len(test)}) tests"
        )
    elif dev is None:
        train, dev, note = _without_dev(train, variant if selects else "faithful", key)
        notes.append(note)
    else:
        train, dev, note = _disjoint(train, dev, test, variant, key if selects else None)
        notes += [note] if note else []
    seen = overlap(train, test)
    if seen:
        notes.append(f"{seen} of {len(train)} train records are also in test; left in")
    return {"train": train, "dev": dev, "test": test}, notes


def halves(dev: Sequence[Record], key: str) -> tuple[list[Record], list[Record]]:
    """The even and the odd places of one seeded permutation: what selects and what tests."""
    shuffled = list(dev)
    random.Random(f"{key}/dev").shuffle(shuffled)
    return shuffled[0::2], shuffled[1::2]


def sample(records: list[Record], items: int, key: str) -> list[Record]:
    """At most ``items`` seeded records (0: all of them, in their order)."""
    if items < 0:
        raise ValueError(f"{key}: a sample of {items} records; give 0 (all) or more")
    if not items or items >= len(records):
        return records
    return random.Random(key).sample(records, items)


def overlap(records: Sequence[Record], others: Sequence[Record]) -> int:
    """How many of ``records`` have a prompt that is among ``others``, white space aside."""
    prompts = {_plain(record) for record in others}
    return sum(_plain(record) in prompts for record in records)


def _plain(record: Record) -> str:
    return " ".join(record["input"].split())


def _disjoint(
    train: list[Record], dev: list[Record], test: list[Record], variant: str, key: str | None
) -> tuple[list[Record], list[Record], str]:
    shared = overlap(dev, test)
    if not shared:
        return train, dev, ""
    equal = shared == len(dev) and len(dev) == len(test)
    found = (
        f"dev = test ({len(dev)} records)"
        if equal
        else f"{shared} of {len(dev)} dev records are also in test"
    )
    if variant == "faithful":
        return train, dev, f"{found}; left as released, so selection sees test items"
    if len(dev) - shared >= _KEPT * len(dev):
        tested = {_plain(record) for record in test}
        kept = [record for record in dev if _plain(record) not in tested]
        return train, kept, f"{found}; removed from dev ({len(kept)} left)"
    if key is None:
        return train, [], f"{found}; left out, since the last state is taken and nothing selects"
    rest, held = _hold_out(train, len(dev), key)
    where = f"held out of train ({len(rest)} left to train on)"
    return rest, held, f"{found}; {len(held)} selection records {where} instead"


def _without_dev(
    train: list[Record], variant: str, key: str
) -> tuple[list[Record], list[Record], str]:
    if variant == "faithful":
        return train, [], "no dev file: nothing selects"
    rest, held = _hold_out(train, _DEV_SIZE, key)
    note = f"no dev file: {len(held)} selection records held out of train ({len(rest)} left)"
    return rest, held, note


def _hold_out(train: list[Record], size: int, key: str) -> tuple[list[Record], list[Record]]:
    size = min(size, max(1, len(train) // _HELD))
    if size >= len(train):
        raise ValueError(
            f"task {key.partition('/')[2]}: {len(train)} train records are too few to hold "
            "selection records out of; use the variant 'faithful' or give a dev file"
        )
    chosen = set(random.Random(f"{key}/held-out").sample(range(len(train)), size))
    held = [record for place, record in enumerate(train) if place in chosen]
    return [record for place, record in enumerate(train) if place not in chosen], held


def _divide(records: list[Record], key: str) -> tuple[Splits, str]:
    """A file with no splits: 10 % tests, 10 % selects (100 at most each), 1,000 at most train."""
    size = min(100, len(records) // 10)
    if size < 1:
        raise ValueError(
            f"task {key.partition('/')[2]}: {len(records)} records in one file are too few to "
            "split; needs 10, or files for train, dev and test"
        )
    shuffled = list(records)
    random.Random(f"{key}/whole").shuffle(shuffled)
    parts = {
        "test": shuffled[:size],
        "dev": shuffled[size : 2 * size],
        "train": shuffled[2 * size : 2 * size + 1000],
    }
    counts = ", ".join(f"{len(parts[split])} {split}" for split in ("train", "dev", "test"))
    return parts, f"one file with no splits: {counts} of its {len(records)} by a seeded shuffle"
