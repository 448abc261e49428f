"""Saving and loading the memory and its streams, and what they refuse."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch

from aimmerge_fast.memory import MemoryStream, Record, RehearsalMemory
from tests.memories import content, filled, numbered


def test_state_round_trip_through_json() -> None:
    memory = RehearsalMemory(0.5, 7, rule="released", label="kind")
    nested = {"kind": "é", "tokens": [1, 2.5, None, True], "meta": {"a": {"b": "c"}}}
    memory.add("first", [nested] * 4)
    memory.add("second", [{"kind": i} for i in range(3)])
    other = RehearsalMemory(0.5, 7, rule="released", label="kind")
    other.load_state_dict(json.loads(json.dumps(memory.state_dict(), sort_keys=True)))
    assert other.state_dict() == memory.state_dict()
    assert other.tasks() == memory.tasks() == {"first": 2, "second": 3}
    assert other.fingerprint() == memory.fingerprint()
    assert other.stream("s").draw(3) == memory.stream("s").draw(3)
    with pytest.raises(ValueError, match="'first' is in the memory already"):
        other.add("first", [nested])


def test_saved_state_is_a_copy() -> None:
    memory = RehearsalMemory(1.0)
    memory.add("task", [{"tokens": [1, 2]}])
    memory.state_dict()["content"][0]["records"][0]["tokens"].append(3)
    assert content(memory) == [{"tokens": [1, 2]}]


def test_fingerprint_follows_content_and_order() -> None:
    def of(*tasks: tuple[str, list[Record]]) -> str:
        memory = RehearsalMemory(1.0)
        for task, records in tasks:
            memory.add(task, records)
        return memory.fingerprint()

    one: list[Record] = [{"a": 1, "b": 2}, {"a": 3}]
    base = of(("t", one))
    assert base == of(("t", [{"b": 2, "a": 1}, {"a": 3}]))
    different = {
        of(),
        of(("u", one)),
        of(("t", one[::-1])),
        of(("t", [{"a": 1, "b": 2}, {"a": 3.5}])),
        of(("t", one[:1])),
        of(("t", one[:1]), ("u", one[1:])),
        of(("t", [{"ids": torch.tensor([1, 2])}])),
        of(("t", [{"ids": torch.tensor([1, 3])}])),
        of(("t", [{"ids": torch.tensor([1, 2], dtype=torch.int32)}])),
        of(("t", [{"ids": b"12"}])),
    }
    assert len(different) == 10
    assert base not in different


# --- bad input --------------------------------------------------------------------------------


def iterator() -> Iterator[Record]:
    yield {"id": 1}


CONSTRUCTOR: list[tuple[dict[str, Any], str]] = [
    *(({"ratio": ratio}, r"ratio=.* must be a number in \(0, 1\]") for ratio in (0, -1, 1.01)),
    *(({"ratio": ratio}, r"ratio=.* must be a number") for ratio in (math.nan, "0.02", True, None)),
    *(({"seed": seed}, "seed=.* must be an integer") for seed in (1.0, "42", None, True)),
    ({"rule": "random"}, "rule='random' is unknown; choose one of balanced, released"),
    ({"label": 3}, "label=3 must be a key of the records, a function or None"),
]


@pytest.mark.parametrize(("arguments", "text"), CONSTRUCTOR)
def test_bad_settings(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        RehearsalMemory(**arguments)


RECORDS: dict[str, tuple[Any, Any, str]] = {
    "empty": ("new", [], "task 'new' has no records"),
    "text": ("new", "records", "records of task 'new' are a str; give a sequence of mappings"),
    "one record": ("new", {"id": 1}, "are a dict; give a sequence of mappings"),
    "iterator": ("new", iterator(), "are a generator; give a sequence"),
    "none": ("new", None, "are a NoneType"),
    "set": ("new", {1, 2}, "are a set"),
    "number": ("new", torch.tensor(3), "are a Tensor"),
    "texts": ("new", ["a", "b"], "record 0 of task 'new' is of type str; each must be a mapping"),
    "mixed": ("new", [{"id": 1}, 5], "record 1 of task 'new' is of type int"),
    "keys": ("new", [{"id": 1}, {2: 1}], "record 1 .* a mapping from strings"),
    "no class": ("new", [{"output": 1}, {"id": 1}], "record 1 of task 'new' has no 'output'"),
    "task again": ("old", [{"id": 1}], "task 'old' is in the memory already"),
    "no name": ("", [{"id": 1}], "task='' must be a string that is not empty"),
    "name": (3, [{"id": 1}], "task=3 must be a string"),
}


@pytest.mark.parametrize("case", RECORDS)
def test_bad_records_change_nothing(case: str) -> None:
    task, records, text = RECORDS[case]
    memory = RehearsalMemory(1.0)
    memory.add("old", numbered(3))
    before = memory.state_dict()
    with pytest.raises(ValueError, match=text):
        memory.add(task, records)
    assert memory.state_dict() == before


def test_missing_label_key_names_the_record() -> None:
    with pytest.raises(ValueError, match=r"record 1 of task 't' has no 'kind'.*set label="):
        RehearsalMemory(label="kind").add("t", [{"kind": 1}, {"output": 1}])


@pytest.mark.parametrize("n", [0, -1, 1.0, None, True])
def test_bad_draw(n: Any) -> None:
    with pytest.raises(ValueError, match=r"n=.* must be an integer of at least 1"):
        filled(3).stream("s").draw(n)


def test_an_empty_memory_has_nothing_to_draw() -> None:
    with pytest.raises(ValueError, match="stream 'probe' has nothing to draw from: the memory is"):
        filled(0).stream("probe").draw(1)


@pytest.mark.parametrize(
    "arguments", [{"name": 3}, {"name": "s", "salt": "0"}, {"name": "s", "fresh": 1}]
)
def test_bad_stream(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"(name|salt|fresh)="):
        filled(3).stream(**arguments)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (torch.zeros(2), "record 1 of task 't' cannot be saved: ids is a Tensor"),
        ((1, 2), "record 1 .*: ids is a tuple"),
        ({"a": [0, {2: 3}]}, r"record 1 .*: ids\.a\[1\] is a dict"),
        ({1, 2}, "record 1 .*: ids is a set"),
    ],
)
def test_what_json_would_change_is_named(value: Any, text: str) -> None:
    memory = RehearsalMemory(1.0)
    memory.add("t", [{"ids": [1]}, {"ids": value}])
    with pytest.raises(ValueError, match=text):
        memory.state_dict()


def test_what_has_no_fingerprint_is_named() -> None:
    memory = RehearsalMemory(1.0)
    memory.add("t", [{"id": 0}, {"id": object()}])
    with pytest.raises(ValueError, match=r"record 1 of task 't' cannot be fingerprinted.* object"):
        memory.fingerprint()


Edit = Callable[[dict[str, Any]], object]
MEMORY_STATES: dict[str, tuple[Edit, str]] = {
    "version": (lambda s: s.update(version=2), "memory state has version=2, this memory 1"),
    "ratio": (lambda s: s.update(ratio=0.5), r"ratio=0\.5, this memory 1\.0"),
    "seed": (lambda s: s.update(seed=1), "seed=1, this memory 42"),
    "rule": (lambda s: s.update(rule="released"), "rule='released', this memory 'balanced'"),
    "label": (lambda s: s.update(label="kind"), "label='kind', this memory None"),
    "missing": (lambda s: s.pop("content"), "memory state lacks 'content'"),
    "unknown": (lambda s: s.update(more=1), "memory state has an unknown field 'more'"),
    "content": (lambda s: s.update(content={}), "content is a dict, not a list"),
    "entry": (lambda s: s["content"].append(3), "memory task state is a int"),
    "task": (lambda s: s["content"][0].update(task=3), "task=3 must be a string"),
    "twice": (lambda s: s["content"].append(s["content"][0]), "names task 'task' twice"),
    "records": (lambda s: s["content"][0].update(records="no"), "are a str; give a sequence"),
    "record": (
        lambda s: s["content"][0].update(records=[1]),
        "record 0 of task 'task' is of type int",
    ),
    "damage": (lambda s: s["content"][0]["records"][1].update(id=7), "does not match its sha256"),
}


@pytest.mark.parametrize("case", MEMORY_STATES)
def test_a_memory_state_that_does_not_fit_changes_nothing(case: str) -> None:
    edit, text = MEMORY_STATES[case]
    memory = filled(3)
    before = memory.state_dict()
    state = filled(4).state_dict()
    edit(state)
    with pytest.raises(ValueError, match=text):
        memory.load_state_dict(state)
    assert memory.state_dict() == before
    with pytest.raises(ValueError, match="memory state is a list; give what state_dict"):
        memory.load_state_dict([])  # type: ignore[arg-type]


STREAM_STATES: list[tuple[Mapping[str, Any], str]] = [
    ({"version": 2}, "stream state has version=2, this stream 1"),
    ({"key": "42/memory/0"}, "key='42/memory/0', this stream '42/probe/0'"),
    ({"fresh": True}, "fresh=True, this stream False"),
    ({"count": -1}, "count=-1 must be an integer of at least 0"),
    ({"position": 1.5}, r"position=1\.5 must be an integer"),
    ({"position": 5}, r"\(count=1, size=4, position=5\) does not fit"),
    ({"size": 5}, "does not fit a memory of 4 records"),
    ({"count": 0}, "does not fit"),
    ({"more": 0}, "unknown field 'more'"),
]


@pytest.mark.parametrize(("edit", "text"), STREAM_STATES)
def test_a_stream_state_that_does_not_fit_changes_nothing(
    edit: Mapping[str, Any], text: str
) -> None:
    stream: MemoryStream = filled(4).stream("probe")
    stream.draw(1)
    before = stream.state_dict()
    with pytest.raises(ValueError, match=text):
        stream.load_state_dict(before | edit)
    assert stream.state_dict() == before
