"""What each rule of the memory keeps, by counting; and that streams and states follow it."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from aimmerge_fast.memory import RULES, RehearsalMemory
from tests.memories import content, ids, numbered

SIZED = ("reservoir", "task_balanced")


def named(task: str, count: int, classes: int = 1) -> list[Any]:
    return [{**record, "id": f"{task}{record['id']}"} for record in numbered(count, classes)]


def memory(rule: str, size: int | None = None, seed: int = 42, ratio: float = 0.02) -> Any:
    return RehearsalMemory(ratio, seed, rule=rule, size=size)


# ---- a share of each task --------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["balanced", "released", "uniform"])
@pytest.mark.parametrize(("percent", "kept"), [(1, 10), (2, 20), (5, 50), (10, 100), (50, 500)])
def test_the_paper_s_ratios(rule: str, percent: int, kept: int) -> None:
    """Of 1,000 records in 5 classes; both balanced rules take as many of each."""
    made = memory(rule, ratio=percent / 100)
    assert made.add("task", numbered(1000, classes=5)) == kept
    counts = Counter(record["output"] for record in content(made))
    if rule != "uniform":
        assert set(counts.values()) == {kept // 5}
    assert len(set(ids(content(made)))) == kept


def test_uniform_looks_at_no_class() -> None:
    """99 of class 0, one of class 1: balanced always keeps the one, uniform in about 10 %."""
    records = [{"id": i, "output": str(i == 0)} for i in range(100)]
    found = {"uniform": 0, "balanced": 0}
    for rule in found:
        for seed in range(200):
            made = memory(rule, seed=seed, ratio=0.1)
            assert made.add("task", records) == 10
            found[rule] += 0 in ids(content(made))
    assert found["balanced"] == 200
    assert 8 <= found["uniform"] <= 35  # binomial(200, 0.1): 20 +- 3.5 sd


def test_uniform_keeps_one_of_a_tiny_task() -> None:
    assert memory("uniform").add("task", numbered(3)) == 1


# ---- a size in all ---------------------------------------------------------------------------


def test_every_record_is_in_the_reservoir_with_equal_probability() -> None:
    """12 of 4 + 10 + 26 records over 800 seeds: each in 240 of them, 13 the sd."""
    counts: Counter[str] = Counter()
    for seed in range(800):
        made = memory("reservoir", 12, seed)
        for task, count in (("a", 4), ("b", 10), ("c", 26)):
            made.add(task, named(task, count))
        assert len(made) == 12
        counts.update(ids(content(made)))
    assert len(counts) == 40
    assert all(abs(n - 240) < 4 * 13 for n in counts.values())


def test_a_reservoir_holds_everything_until_it_is_full() -> None:
    made = memory("reservoir", 10)
    made.add("a", named("a", 4))
    assert made.add("b", named("b", 6)) == 6
    assert made.tasks() == {"a": 4, "b": 6}
    made.add("c", named("c", 1))
    assert len(made) == 10


@pytest.mark.parametrize(
    ("size", "shares"),
    [
        (12, [[12], [6, 6], [4, 4, 4], [3, 3, 3, 3]]),
        (10, [[10], [5, 5], [4, 3, 3], [3, 3, 2, 2]]),
        (3, [[3], [2, 1], [1, 1, 1], [1, 1, 1, 0]]),
    ],
)
def test_shares_of_the_tasks(size: int, shares: list[list[int]]) -> None:
    made = memory("task_balanced", size)
    for number, share in enumerate(shares):
        task = "abcd"[number]
        assert made.add(task, named(task, 20)) == share[-1]
        assert list(made.tasks().values()) == share


def test_what_a_small_task_leaves_over_goes_to_the_newest() -> None:
    made = memory("task_balanced", 12)
    for task, count, share in (
        ("a", 2, {"a": 2}),
        ("b", 20, {"a": 2, "b": 10}),
        ("c", 20, {"a": 2, "b": 4, "c": 6}),
    ):
        made.add(task, named(task, count))
        assert made.tasks() == share


@pytest.mark.parametrize("rule", SIZED)
def test_records_leave_and_none_comes_back(rule: str) -> None:
    made = memory(rule, 8)
    made.add("a", named("a", 20))
    before = set(ids(content(made)))
    made.add("b", named("b", 20))
    after = set(ids(content(made)))
    assert {name for name in after if name[0] == "a"} < before
    assert len(after) == 8


@pytest.mark.parametrize("rule", SIZED)
def test_the_sample_is_the_seed_s(rule: str) -> None:
    def kept(seed: int) -> list[Any]:
        made = memory(rule, 8, seed)
        for task in "abc":
            made.add(task, named(task, 20))
        return ids(content(made))

    assert kept(1) == kept(1)
    assert kept(1) != kept(2)


@pytest.mark.parametrize("rule", SIZED)
def test_a_stream_starts_anew_when_records_were_exchanged(rule: str) -> None:
    """The size is the same as before; what is drawn is what is held now, once each."""
    made = memory(rule, 8)
    made.add("a", named("a", 20))
    stream = made.stream("probe")
    stream.draw(2)
    made.add("b", named("b", 20))
    drawn = ids(stream.draw(4)) + ids(stream.draw(4))
    assert sorted(drawn) == sorted(ids(content(made)))


@pytest.mark.parametrize("rule", SIZED)
def test_state_goes_on_as_if_never_saved(rule: str) -> None:
    made = memory(rule, 8)
    made.add("a", named("a", 20))
    made.add("b", named("b", 20))
    stream = made.stream("probe")
    stream.draw(3)
    saved = json.loads(json.dumps([made.state_dict(), stream.state_dict()]))
    again = memory(rule, 8)
    again.load_state_dict(saved[0])
    other = again.stream("probe")
    other.load_state_dict(saved[1])
    assert again.fingerprint() == made.fingerprint()
    assert stream.draw(3) == other.draw(3)
    for each in (made, again):
        each.add("c", named("c", 30))
    assert again.fingerprint() == made.fingerprint()
    assert stream.draw(3) == other.draw(3)


def test_a_task_may_have_left_altogether() -> None:
    made = memory("reservoir", 2, seed=1)
    made.add("a", named("a", 1))
    made.add("b", named("b", 200))
    assert made.tasks()["a"] == 0
    again = memory("reservoir", 2, seed=1)
    again.load_state_dict(made.state_dict())
    assert again.tasks() == {"a": 0, "b": 2}
    shares = memory("uniform")
    shares.add("a", named("a", 100))
    broken = shares.state_dict()
    broken["content"][0]["records"] = []
    with pytest.raises(ValueError, match="has no records"):
        memory("uniform").load_state_dict(broken)


# ---- bad input -------------------------------------------------------------------------------


def test_size_belongs_to_the_rules_of_a_size() -> None:
    for rule in RULES:
        sized = rule in SIZED
        with pytest.raises(ValueError, match="reservoir and task_balanced, which need it"):
            memory(rule, None if sized else 5)
        memory(rule, 5 if sized else None)


@pytest.mark.parametrize("size", [0, -1, 2.5, True])
def test_bad_sizes(size: Any) -> None:
    with pytest.raises(ValueError, match="size="):
        memory("reservoir", size)


def test_an_unknown_rule_is_told_the_known() -> None:
    with pytest.raises(ValueError, match="balanced, released, uniform, reservoir, task_balanced"):
        memory("newest")


def test_states_of_other_sizes_and_damaged_counts() -> None:
    made = memory("reservoir", 8)
    made.add("a", named("a", 20))
    with pytest.raises(ValueError, match="size=8, this memory 9"):
        memory("reservoir", 9).load_state_dict(made.state_dict())
    with pytest.raises(ValueError, match="seen=-1"):
        memory("reservoir", 8).load_state_dict({**made.state_dict(), "seen": -1})
    state = made.state_dict()
    del state["seen"]
    with pytest.raises(ValueError, match="lacks 'seen'"):
        memory("reservoir", 8).load_state_dict(state)
