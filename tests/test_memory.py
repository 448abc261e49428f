"""The rehearsal memory: what is kept, in which order it comes back."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aimmerge_fast.memory import Record, RehearsalMemory
from tests.memories import content, filled, ids, numbered

fixed = settings(derandomize=True, max_examples=60, deadline=None, database=None)


# --- what is kept -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "ratio", "want"), [(1000, 0.02, 20), (49, 0.02, 1), (150, 0.02, 3), (7, 1, 7)]
)
def test_size_is_the_floor_of_the_share_and_at_least_one(
    count: int, ratio: float, want: int
) -> None:
    memory = RehearsalMemory(ratio)
    assert memory.add("task", [{"id": i} for i in range(count)]) == want
    assert (len(memory), memory.tasks()) == (want, {"task": want})


def test_a_small_sample_is_what_it_was() -> None:
    """A change of the sampling would silently change every run that somebody repeats."""
    memory = RehearsalMemory(0.1, seed=42)
    memory.add("agnews", numbered(60, classes=3))
    assert ids(content(memory)) == [17, 34, 39, 44, 46, 51]  # classes 2 1 0 2 1 0
    assert ids(memory.stream("probe").draw(6)) == [34, 39, 17, 51, 46, 44]


class_sizes = st.lists(st.sampled_from([1, 1, 2, 3, 7, 40]), min_size=1, max_size=12)


def shuffled(sizes: list[int], seed: int) -> list[Record]:
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    random.Random(seed).shuffle(labels)
    return [{"id": i, "output": label} for i, label in enumerate(labels)]


def kept_per_class(memory: RehearsalMemory, sizes: list[int]) -> list[int]:
    counts = Counter(record["output"] for record in content(memory))
    return [counts[label] for label in range(len(sizes))]


@fixed
@given(sizes=class_sizes, ratio=st.sampled_from([0.02, 0.1, 0.3, 1.0]), seed=st.integers(0, 5))
def test_balanced_keeps_want_with_bounds_per_class(
    sizes: list[int], ratio: float, seed: int
) -> None:
    records = shuffled(sizes, seed)
    memory = RehearsalMemory(ratio, seed)
    want = max(1, int(ratio * len(records)))
    assert memory.add("task", records) == want
    kept = content(memory)
    assert all(records[record["id"]] == record for record in kept)
    assert ids(kept) == sorted(set(ids(kept)))  # no record twice, in their own order
    if len(sizes) <= want:
        quota = want // len(sizes)
        spare = want - sum(min(quota, size) for size in sizes)
        for count, size in zip(kept_per_class(memory, sizes), sizes, strict=True):
            assert min(quota, size) <= count <= min(quota, size) + spare


@fixed
@given(sizes=class_sizes, ratio=st.sampled_from([0.02, 0.1, 0.3, 1.0]), seed=st.integers(0, 5))
def test_released_keeps_every_class(sizes: list[int], ratio: float, seed: int) -> None:
    memory = RehearsalMemory(ratio, seed, rule="released")
    memory.add("task", shuffled(sizes, seed))
    want = int(ratio * sum(sizes))
    quota = max(1, want // len(sizes))
    floors = [min(quota, size) for size in sizes]
    assert len(memory) == max(want, sum(floors))
    kept = kept_per_class(memory, sizes)
    assert all(count >= floor for count, floor in zip(kept, floors, strict=True))


def test_released_keeps_a_whole_generation_task_and_balanced_two_percent() -> None:
    records = [{"output": f"sentence {i}"} for i in range(1000)]
    released, balanced = RehearsalMemory(rule="released"), RehearsalMemory()
    assert released.add("task1510", records) == 1000
    assert balanced.add("task1510", records) == 20
    tiny = RehearsalMemory(rule="released")
    assert tiny.add("cb", numbered(30, classes=3)) == 3  # want is 0


def test_uniform_sampling_is_uniform_and_class_members_are_too() -> None:
    drawn: Counter[int] = Counter()
    for seed in range(400):
        memory = RehearsalMemory(0.2, seed)
        memory.add("task", numbered(20, classes=20))  # more classes than the four wanted
        drawn.update(ids(content(memory)))
    assert sum(drawn.values()) == 1600
    assert all(40 < drawn[i] < 125 for i in range(20))  # 80 expected, standard deviation 8


def test_a_sample_depends_on_seed_and_task_alone() -> None:
    def sample(seed: int, *tasks: str, rule: str = "balanced") -> list[int]:
        memory = RehearsalMemory(0.1, seed, rule=rule)
        for task in tasks:
            memory.add(task, numbered(100))
        return ids(content(memory))[-10:]

    random.seed(1)
    state, torch_state = random.getstate(), torch.get_rng_state()
    assert sample(1, "a") == sample(1, "b", "c", "a")
    assert sample(1, "a") != sample(1, "b")
    assert sample(1, "a") != sample(2, "a")
    assert sample(1, "a", rule="released") == sample(1, "b", "a", rule="released")
    assert sample(1, "a", rule="released") == sample(1, "b", rule="released")  # reseeded, A.3
    assert random.getstate() == state
    assert torch.equal(torch.get_rng_state(), torch_state)


@pytest.mark.parametrize(
    ("label", "records"),
    [
        (None, [{"id": i, "output": "rare" if i == 5 else "x"} for i in range(40)]),
        (None, [{"id": i, "label": int(i == 5)} for i in range(40)]),
        (None, [{"id": i, "output": i == 5, "label": 0} for i in range(40)]),
        ("kind", [{"id": i, "kind": i == 5, "output": i} for i in range(40)]),
        (lambda r: r["id"] == 5, [{"id": i, "output": "x"} for i in range(40)]),
        (None, [{"id": i, "output": ["a"] if i == 5 else ["b"]} for i in range(40)]),
        (None, [{"id": i, "label": torch.tensor(int(i == 5))} for i in range(40)]),
    ],
    ids=["output", "label", "output first", "key", "function", "list", "tensor"],
)
def test_class_of_a_record(label: Any, records: list[Record]) -> None:
    for seed in range(20):  # two of 40: by chance alone, record 5 would nearly never be kept
        memory = RehearsalMemory(0.05, seed, label=label)
        assert memory.add("task", records) == 2
        assert 5 in ids(memory.stream("s").draw(2))


class Rows:
    """A map-style dataset: a length and integer indices, nothing more."""

    def __len__(self) -> int:
        return 50

    def __getitem__(self, index: int) -> Record:
        return {"id": index}


def test_a_dataset_will_do() -> None:
    memory = RehearsalMemory(0.1)
    assert memory.add("rows", Rows()) == 5  # type: ignore[arg-type]
    assert set(ids(content(memory))) <= set(range(50))


def test_changing_records_outside_changes_nothing_inside() -> None:
    records = [{"id": 0}]
    memory = RehearsalMemory(1.0)
    memory.add("task", records)
    records[0]["id"] = 9
    memory.stream("s").draw(1)[0]["id"] = 8  # type: ignore[index]
    assert ids(content(memory)) == [0]


# --- streams ----------------------------------------------------------------------------------


@fixed
@given(size=st.integers(1, 30), n=st.integers(1, 35), epochs=st.integers(1, 4))
def test_an_epoch_draws_each_record_at_most_once(size: int, n: int, epochs: int) -> None:
    memory = filled(size)
    stream = memory.stream("probe")
    per_epoch = max(1, size // n)
    for _ in range(epochs):
        seen = [i for _ in range(per_epoch) for i in ids(stream.draw(n))]
        assert len(seen) == len(set(seen)) == per_epoch * min(n, size)  # no partial batch
        if size % n == 0 or n >= size:
            assert sorted(seen) == list(range(size))


@fixed
@given(size=st.integers(1, 30), n=st.integers(1, 35), fresh=st.booleans(), draws=st.integers(0, 6))
def test_resumes_the_same_at_any_cut(size: int, n: int, fresh: bool, draws: int) -> None:
    stream = filled(size).stream("probe", fresh=fresh, salt=3)
    for _ in range(draws):
        stream.draw(n)
    state = json.loads(json.dumps(stream.state_dict()))
    resumed = filled(size).stream("probe", fresh=fresh, salt=3)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    for size_of_draw in (n, 1, n, 2, size):
        assert resumed.draw(size_of_draw) == stream.draw(size_of_draw)
    assert resumed.state_dict() == stream.state_dict()


@fixed
@given(size=st.integers(2, 30), n=st.integers(1, 35))
def test_fresh_draws_without_replacement_each_time(size: int, n: int) -> None:
    stream = filled(size).stream("probe", fresh=True)
    draws = [ids(stream.draw(n)) for _ in range(40)]
    assert all(len(draw) == len(set(draw)) == min(n, size) for draw in draws)
    assert len({tuple(draw) for draw in draws}) > 1
    assert {i for draw in draws for i in draw} == set(range(size)) or n * 40 < 8 * size


def test_fresh_draws_are_not_the_parts_of_one_permutation() -> None:
    fresh, persistent = (filled(20).stream("probe", fresh=fresh) for fresh in (True, False))
    assert all(set(ids(persistent.draw(10))).isdisjoint(ids(persistent.draw(10))) for _ in "abcd")
    assert not any(set(ids(fresh.draw(10))).isdisjoint(ids(fresh.draw(10))) for _ in "abcd")


def test_a_memory_shorter_than_a_batch_is_drawn_whole_and_shuffled() -> None:
    stream = filled(5).stream("probe")
    draws = [ids(stream.draw(8)) for _ in range(20)]
    assert all(sorted(draw) == [0, 1, 2, 3, 4] for draw in draws)
    assert len({tuple(draw) for draw in draws}) > 10


def test_streams_differ_by_seed_name_and_salt_alone() -> None:
    def draw(memory: RehearsalMemory, name: str = "probe", salt: int = 0) -> list[int]:
        return ids(memory.stream(name, salt=salt).draw(20))

    base = draw(filled(20))
    assert base == draw(filled(20))
    others = [draw(filled(20), "memory"), draw(filled(20), salt=1), draw(filled(20, seed=1))]
    assert all(other != base for other in others)
    memory = filled(20)
    probe, steps = memory.stream("probe"), memory.stream("memory")
    alone = [probe.draw(4) for _ in range(5)]
    probe = memory.stream("probe")
    between = []
    for _ in range(5):
        between.append(probe.draw(4))
        steps.draw(3)  # drawing from one does not move the other
    assert between == alone


def test_all_tasks_are_pooled_and_growth_starts_a_new_permutation() -> None:
    memory = filled(6)
    stream = memory.stream("probe")
    stream.draw(2)
    state = stream.state_dict()
    memory.add("second", [{"id": 100 + i} for i in range(4)])
    resumed = memory.stream("probe")
    resumed.load_state_dict(state)  # taken before the memory grew
    seen = [i for _ in range(5) for i in ids(stream.draw(2))]
    assert sorted(seen) == [0, 1, 2, 3, 4, 5, 100, 101, 102, 103]
    assert [i for _ in range(5) for i in ids(resumed.draw(2))] == seen
