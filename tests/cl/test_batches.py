"""Batches are a pure function of the step, whole epochs, and of like length when bucketed."""

from __future__ import annotations

import random
from itertools import chain

import pytest

from aimmerge_fast.cl.batches import batch_at

RECORDS = list(range(50))
LENGTHS = [random.Random(place).randint(1, 500) for place in RECORDS]


def taken(first: int, last: int, window: int = 0, seed: str = "1/a") -> list[list[int]]:
    return [batch_at(RECORDS, s, 8, seed, LENGTHS, window) for s in range(first, last + 1)]


def test_an_epoch_is_the_seeded_permutation_without_its_partial_batch() -> None:
    for epoch in (0, 1):
        order = list(RECORDS)
        random.Random(f"1/a/{epoch}").shuffle(order)
        got = taken(6 * epoch + 1, 6 * epoch + 6)
        assert [record for batch in got for record in batch] == order[:48]
    assert taken(1, 1) != taken(7, 7)
    assert taken(1, 1) != taken(1, 1, seed="2/a")


@pytest.mark.parametrize("window", [2, 4, 5, 6, 100])
def test_bucketing_deals_out_the_same_records_by_length(window: int) -> None:
    plain, near = taken(1, 6), taken(1, 6, window)
    for start in range(0, 6, window):
        mine, same = near[start : start + window], plain[start : start + window]
        assert sorted(chain(*mine)) == sorted(chain(*same))
        ordered = sorted(chain(*same), key=LENGTHS.__getitem__)
        chunks = [ordered[at : at + 8] for at in range(0, len(ordered), 8)]
        assert sorted(mine) == sorted(chunks)
    padded = [
        sum(8 * max(LENGTHS[record] for record in batch) for batch in batches)
        for batches in (plain, near)
    ]
    assert padded[1] < 0.95 * padded[0]


def test_short_batches_do_not_always_come_first() -> None:
    means = [
        [sum(LENGTHS[record] for record in batch) for batch in taken(6 * e + 1, 6 * e + 6, 6)]
        for e in range(4)
    ]
    assert any(row != sorted(row) for row in means)
    assert taken(9, 9, 6) == [taken(7, 12, 6)[2]]  # no state: the step alone says the batch


def test_fewer_records_than_a_batch_make_a_smaller_one() -> None:
    assert sorted(batch_at([1, 2, 3], 5, 8, 0)) == [1, 2, 3]
    assert sorted(batch_at([1, 2, 3], 5, 8, 0, [9, 9, 9], 4)) == [1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], 1, 8, 0), "no records"),
        (([1], 0, 8, 0), "step=0"),
        (([1], 1, 0, 0), "size=0"),
        (([1], 1, 1, 0, [1, 2]), "2 lengths for 1 records"),
    ],
)
def test_bad_input_is_refused(arguments: tuple[list[int], int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        batch_at(*arguments)
