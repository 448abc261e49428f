"""Each known defect: found in the content with its counts, mended or only told, by variant."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from aimmerge_fast.cl.data import TaskData, load_task
from tests.cl.task_files import definition_rows, plain_task, prompt, rows, task_files

POLARITY = 'The task is to classify a sentence as "POS" if it is positive or as "NEG" if not'
TWO = "classify given tweet text into two categories: 1) positive, and 2) negative based on it."
SIX = "into one of the six emotions: 'joy', 'love', 'anger', 'fear', or 'surprise'."


def both(folder: Path, task: str) -> tuple[TaskData, TaskData]:
    return load_task(folder, task), load_task(folder, task, variant="faithful")


def cut_task(folder: Path, task: str, definition: str, letters: str) -> None:
    answers = {"train": letters * 5, "dev": letters, "test": letters}
    parts = {s: definition_rows(definition, a, f"{task}-{s}") for s, a in answers.items()}
    task_files(folder, task, **parts)


@pytest.mark.parametrize(
    ("definition", "letters", "words"),
    [
        (POLARITY, "PNPN", {"P": "POS", "N": "NEG"}),
        (TWO, "pnnp", {"p": "positive", "n": "negative"}),
    ],
)
def test_cut_labels_get_the_words_of_the_prompt(
    tmp_path: Path, definition: str, letters: str, words: dict[str, str]
) -> None:
    cut_task(tmp_path, "task363", definition, letters)
    mended, released = both(tmp_path, "task363")
    assert [record["output"] for record in mended.train] == [words[c] for c in letters * 5]
    assert [record["output"] for record in mended.test] == [words[c] for c in letters]
    assert mended.labels == tuple(words[letter] for letter in sorted(words))
    mapped = ", ".join(f"{letter} to {words[letter]}" for letter in sorted(words))
    assert mended.notes == (
        f"all 28 labels are cut to their first character ({', '.join(sorted(words))}); "
        f"mapped to the words of the prompt ({mapped})",
    )
    assert [record["output"] for record in released.train] == list(letters * 5)
    assert released.labels == tuple(sorted(words))
    assert "all 28 labels are cut" in released.notes[0]
    assert "left as released" in released.notes[0]
    assert released.sha256 != mended.sha256


# The released definition says six and names five: sadness is missing, so s is not surprise alone.
def test_merged_labels_stay_and_are_told(tmp_path: Path) -> None:
    cut_task(tmp_path, "task875", SIX, "jlafss")
    mended, released = both(tmp_path, "task875")
    assert Counter(record["output"] for record in mended.train) == {
        **dict.fromkeys(("joy", "love", "anger", "fear"), 5),
        "s": 10,
    }
    assert mended.labels == ("anger", "fear", "joy", "love", "s")
    told = "s stands for surprise and sadness in 14 records, which nothing can tell apart"
    assert f"{told}, so it stays s" in mended.notes[0]
    assert told in released.notes[0]
    assert released.labels == ("a", "f", "j", "l", "s")


@pytest.mark.parametrize(
    "definition",
    [
        "options (associated with \"A\", \"B\", \"C\"). Answer by one of: 'A', 'B', 'C'",
        "answer by the letter of the animal",  # no word to map to
        "is it an 'Apple' or a 'Cherry'?",  # nothing for B
    ],
)
def test_letters_that_are_answers_stay(tmp_path: Path, definition: str) -> None:
    cut_task(tmp_path, "task073", definition, "ABC")
    task = load_task(tmp_path, "task073")
    assert {record["output"] for record in task.train} == {"A", "B", "C"}
    assert task.notes == ()


def test_words_are_not_mended(tmp_path: Path) -> None:
    cut_task(tmp_path, "task1687", TWO, "pn")
    parts = {s: definition_rows(TWO, ["positive", "negative"] * 3, s) for s in ("train", "test")}
    task_files(tmp_path, "task1687", **parts)
    task = load_task(tmp_path, "task1687")
    assert {record["output"] for record in task.train} == {"positive", "negative"}
    assert task.notes == ()


def test_dev_equal_to_test_is_held_out_of_train(tmp_path: Path) -> None:
    same = rows(8, "same")
    task_files(tmp_path, "cb", train=rows(50, "t"), dev=same, test=same)
    mended, released = both(tmp_path, "cb")
    assert (len(mended.train), len(mended.dev)) == (45, 5)  # a tenth of train
    ids = {record["id"] for record in mended.train} | {record["id"] for record in mended.dev}
    assert ids == {record["id"] for record in rows(50, "t")}
    assert mended.test == same
    assert mended.notes == (
        "dev = test (8 records); 5 selection records held out of train (45 left to train on) "
        "instead",
    )
    assert (released.train, released.dev, released.test) == (rows(50, "t"), same, same)
    assert released.notes == (
        "dev = test (8 records); left as released, so selection sees test items",
    )
    assert load_task(tmp_path, "cb") == mended
    assert load_task(tmp_path, "cb", seed=1).dev != mended.dev


def test_held_out_records_are_no_more_than_dev_had(tmp_path: Path) -> None:
    same = rows(3, "same")
    task_files(tmp_path, "cb", train=rows(100, "t"), dev=same, test=same)
    assert (len(load_task(tmp_path, "cb").train), len(load_task(tmp_path, "cb").dev)) == (97, 3)


def test_other_ids_and_white_space_hide_no_overlap(tmp_path: Path) -> None:
    dev = [
        {**r, "id": f"d{i}", "input": r["input"].replace("\n", " \n ")}
        for i, r in enumerate(rows(8, "same"))
    ]
    task_files(tmp_path, "cb", train=rows(50, "t"), dev=dev, test=rows(8, "same"))
    assert load_task(tmp_path, "cb").notes[0].startswith("dev = test (8 records)")


def test_dev_inside_a_larger_test_is_held_out_too(tmp_path: Path) -> None:
    test = rows(20, "same")
    task_files(tmp_path, "wic", train=rows(50, "t"), dev=test[:6], test=test)
    task = load_task(tmp_path, "wic")
    assert (len(task.train), len(task.dev), len(task.test)) == (45, 5, 20)
    assert task.notes[0].startswith("6 of 6 dev records are also in test; 5 selection records")


def test_a_partial_overlap_leaves_dev(tmp_path: Path) -> None:
    test = rows(10, "same")
    task_files(tmp_path, "yelp", train=rows(50, "t"), dev=test[:3] + rows(5, "d"), test=test)
    mended, released = both(tmp_path, "yelp")
    assert mended.dev == rows(5, "d")
    assert mended.train == released.train == rows(50, "t")
    assert mended.notes == ("3 of 8 dev records are also in test; removed from dev (5 left)",)
    assert len(released.dev) == 8
    assert released.notes == (
        "3 of 8 dev records are also in test; left as released, so selection sees test items",
    )


def test_train_records_in_test_are_told(tmp_path: Path) -> None:
    plain_task(tmp_path, "yelp")
    task_files(tmp_path, "yelp", train=[*rows(20, "t"), *rows(2, "yelp test")])
    for task in both(tmp_path, "yelp"):
        assert task.notes == ("2 of 22 train records are also in test; left in",)
        assert len(task.train) == 22


def test_no_dev_file(tmp_path: Path) -> None:
    plain_task(tmp_path, "yelp", dev=0)
    mended, released = both(tmp_path, "yelp")
    assert (len(mended.train), len(mended.dev)) == (36, 4)
    assert "4 selection records held out of train (36 left)" in mended.notes[0]
    assert released.dev == []
    assert released.notes == ("no dev file: nothing selects",)


def test_too_few_records_to_hold_any_out(tmp_path: Path) -> None:
    task_files(tmp_path, "yelp", train=rows(1, "t"), test=rows(2, "x"))
    with pytest.raises(ValueError, match="1 train records are too few"):
        load_task(tmp_path, "yelp")


def test_records_without_a_label_are_dropped(tmp_path: Path) -> None:
    dev = rows(8, "d")
    dev[2]["output"] = dev[5]["output"] = "-"
    plain_task(tmp_path, "mnli")
    task_files(tmp_path, "mnli", dev=dev)
    mended, released = both(tmp_path, "mnli")
    assert [record["id"] for record in mended.dev] == [f"d_{i}" for i in (0, 1, 3, 4, 6, 7)]
    assert mended.notes == ("2 of 8 dev records are labelled '-'; dropped",)
    assert len(released.dev) == 8
    assert released.notes[0].startswith("2 of 8 dev records are labelled '-'; left as released")


def test_a_test_split_of_nothing_but_unlabelled_records(tmp_path: Path) -> None:
    plain_task(tmp_path, "mnli")
    task_files(tmp_path, "mnli", test=[{"id": "x", "input": prompt("x"), "output": "-"}])
    with pytest.raises(ValueError, match=r"task mnli: no test record is left of .*mnli_T5.json"):
        load_task(tmp_path, "mnli")


def test_references_over_several_lines(tmp_path: Path) -> None:
    parts = {
        s: definition_rows("Write.", [f"{s} {i}" for i in range(9)], s)
        for s in ("train", "dev", "test")
    }
    parts["train"][0]["output"] = "one\ntwo"
    parts["test"][4]["output"] = "one\ntwo\n\nthree"
    parts["test"][5]["output"] = "ends in one\n"
    task_files(tmp_path, "task1590", **parts)
    mended, released = both(tmp_path, "task1590")
    assert mended.test[4]["output"] == "one two  three"
    assert mended.test[5]["output"] == "ends in one\n"
    assert mended.train[0]["output"] == "one\ntwo"  # what the model learns is left alone
    assert mended.notes == (
        "references with a newline: 1 of 9 test; joined by spaces, which Rouge-L does not see",
    )
    assert released.test[4]["output"] == "one\ntwo\n\nthree"
    assert released.notes == ("references with a newline: 1 of 9 test; left as released",)


def test_ids_of_another_task(tmp_path: Path) -> None:
    parts = {
        s: definition_rows(TWO, ["positive", "negative"] * n, "task195-ab" + s)
        for s, n in (("train", 5), ("dev", 1), ("test", 2))
    }
    task_files(tmp_path, "task1687", **parts)
    mended, released = both(tmp_path, "task1687")
    assert mended.train[3]["id"] == "task1687-abtrain-3"
    assert mended.notes == ("16 records carry ids of task195; renamed",)
    assert released.train[3]["id"] == "task195-abtrain-3"
    assert released.notes == ("16 records carry ids of task195; left as released",)


def test_own_ids_however_padded_are_fine(tmp_path: Path) -> None:
    parts = {
        s: definition_rows("Answer.", ["a b", "c d"], f"task73-{s}")
        for s in ("train", "dev", "test")
    }
    task_files(tmp_path, "task073", **parts)
    assert load_task(tmp_path, "task073").notes == ()
