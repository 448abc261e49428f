"""Every public format, its layout and its prompts, recognised from a tiny folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aimmerge_fast.cl.data import load_task
from aimmerge_fast.cl.data.prompts import options_in
from aimmerge_fast.cl.streams import stream
from tests.cl.task_files import plain_task, prompt, write

SPLITS = {"train": 12, "dev": 4, "test": 5}
AG = "What is the topic of the following paragraph? Choose one from the option. Option: "


def in_folder(folder: Path, name: str, made: dict[str, Any], suffix: str = ".json") -> None:
    for split, value in made.items():
        write(folder / name / f"{split}{suffix}", value)


def labelled(count: int, tag: str) -> list[dict[str, str]]:
    labels = ("World", "Sports")
    return [{"label": labels[i % 2], "sentence": f"Text: {tag} {i}\n"} for i in range(count)]


def test_o_lora(tmp_path: Path) -> None:
    in_folder(tmp_path / "TC", "agnews", {s: labelled(n, s) for s, n in SPLITS.items()})
    write(tmp_path / "TC/agnews/labels.json", ["World", "Sports", "Business"])
    assert stream("all", folder=tmp_path).tasks == ("agnews",)
    for format in ("auto", "o-lora"):
        task = load_task(tmp_path, "agnews", format=format)
        assert task.train[1] == {
            "id": "agnews-train-1",
            "input": f"{AG}World, Sports, Business.\nText: train 1\n\nAnswer:",
            "output": "Sports",
        }
        assert task.labels == ("World", "Sports", "Business")
        assert (len(task.dev), len(task.test), task.notes) == (4, 5, ())


def test_o_lora_without_labels_takes_those_of_train(tmp_path: Path) -> None:
    in_folder(tmp_path, "agnews", {s: labelled(n, s) for s, n in SPLITS.items()})
    task = load_task(tmp_path, "agnews")
    assert task.labels == ("Sports", "World")
    assert task.notes == ("no labels.json: the options are the 2 labels of the train file",)


def test_o_lora_label_outside_its_list(tmp_path: Path) -> None:
    made = {s: labelled(n, s) for s, n in SPLITS.items()}
    made["dev"][2]["label"] = "Sport"
    in_folder(tmp_path, "agnews", made)
    with pytest.raises(ValueError, match=r"dev.json, record 2, field 'label': 'Sport' is not"):
        load_task(tmp_path, "agnews")


@pytest.mark.parametrize(
    ("labels", "message"),
    [(["one"], "lists 1 options"), ({"a": 1}, "needs a JSON list of strings")],
)
def test_a_bad_list_of_labels(tmp_path: Path, labels: object, message: str) -> None:
    in_folder(tmp_path, "agnews", {s: labelled(n, s) for s, n in SPLITS.items()})
    write(tmp_path / "agnews/labels.json", labels)
    with pytest.raises(ValueError, match=f"labels.json {message}"):
        load_task(tmp_path, "agnews")


def natural(count: int, tag: str, *, listed: bool = False) -> dict[str, Any]:
    answers = [f"answer {tag} {i}" for i in range(count)]
    return {
        "Definition": ["Answer it."] if listed else "Answer it.",
        "Positive Examples": [{"input": "q", "output": "a", "explanation": "so"}],
        "Instances": [
            {"id": f"task591-{tag}{i}", "input": f"{tag} {i}?", "output": [a, "b"] if listed else a}
            for i, a in enumerate(answers)
        ],
    }


@pytest.mark.parametrize("listed", [False, True])
def test_natural_instructions(tmp_path: Path, listed: bool) -> None:
    made = {split: natural(n, split, listed=listed) for split, n in SPLITS.items()}
    in_folder(tmp_path / "SuperNI", "task591_sciq_answer_generation", made)
    task = load_task(tmp_path, "task591")
    assert task.test[2] == {
        "id": "task591-test2",
        "input": "[INS] Answer it.\n [IN] test 2?\n [OUT] ",
        "output": "answer test 2",
    }
    assert (task.metric, task.labels, task.notes) == ("rougeL", None, ())


def test_natural_instructions_with_labels_ask_the_tasks_question(tmp_path: Path) -> None:
    def part(split: str, count: int) -> dict[str, Any]:
        instances = [{"input": f"{split} {i}", "output": "AB"[i % 2]} for i in range(count)]
        return {"Definition": ["Pick."], "Positive Examples": [], "Instances": instances}

    in_folder(tmp_path, "copa", {split: part(split, n) for split, n in SPLITS.items()})
    write(tmp_path / "copa/labels.json", ["A", "B"])
    assert load_task(tmp_path, "copa").dev[1]["input"] == (
        "According to the following passage, is the question true or false? Choose one from the "
        "option. Option: A, B.\ndev 1\nAnswer:"
    )


def test_one_file_with_no_splits_is_divided(tmp_path: Path) -> None:
    write(tmp_path / "task591_sciq_answer_generation.json", natural(57, "whole"))
    task = load_task(tmp_path, "task591")
    assert (len(task.train), len(task.dev), len(task.test)) == (47, 5, 5)
    ids = [record["id"] for part in (task.train, task.dev, task.test) for record in part]
    assert len(set(ids)) == 57
    assert task.notes == (
        "one file with no splits: 47 train, 5 dev, 5 test of its 57 by a seeded shuffle",
    )
    write(tmp_path / "task591_sciq_answer_generation.json", natural(9, "whole"))
    with pytest.raises(ValueError, match="9 records in one file are too few"):
        load_task(tmp_path, "task591")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Definition": None}, "field 'Definition': needs a string"),
        ({"Instances": []}, "holds no records"),
        ({"Instances": {}}, "field 'Instances': needs a list"),
        ({"Instances": [{"input": "q", "output": []}]}, "record 0, field 'output': is list"),
        ({"Instances": [{"input": "q"}]}, "record 0, field 'output': missing"),
    ],
)
def test_malformed_natural_instructions(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    made = {split: natural(n, split) for split, n in SPLITS.items()}
    in_folder(tmp_path, "task591", {**made, "train": {**made["train"], **change}})
    with pytest.raises(ValueError, match=rf"train.json.*{message}"):
        load_task(tmp_path, "task591")


def alpaca(count: int, tag: str) -> list[dict[str, str]]:
    instruction = "Choose one from the option.\nOption: False, True"
    return [
        {"instruction": instruction, "input": f"{tag} {i}", "output": ("False", "True")[i % 2]}
        for i in range(count)
    ]


def test_alpaca_in_folders_named_twice(tmp_path: Path) -> None:
    for split, count in SPLITS.items():
        write(tmp_path / f"LNT/QQP/QQP_{split}.json", alpaca(count, split))
    write(tmp_path / "LNT/benchmark_info.json", {"orders": {}})
    task = load_task(tmp_path, "qqp")
    assert task.test[1] == {
        "id": "qqp-test-1",
        "instruction": "Choose one from the option.\nOption: False, True",
        "input": "Choose one from the option.\nOption: False, True\ntest 1",
        "output": "True",
    }
    assert (task.metric, task.labels) == ("accuracy", ("False", "True"))


def test_alpaca_joins_without_doubling_lines(tmp_path: Path) -> None:
    made = [
        {"instruction": "Do.\n", "input": "x", "output": "a"},
        {"instruction": "Do.", "input": "", "output": "a"},
        {"instruction": "Do.", "output": "b"},
    ]
    in_folder(tmp_path, "mine", {"train": made, "dev": made[:1]})
    with pytest.raises(ValueError, match="no test record is left"):  # half of one dev record
        load_task(tmp_path, "mine")
    in_folder(tmp_path, "mine", {"dev": [{**made[0], "input": "y"}, {**made[0], "input": "z"}]})
    assert [r["input"] for r in load_task(tmp_path, "mine").train] == ["Do.\nx", "Do.", "Do."]
    in_folder(tmp_path, "mine", {"train": [{"instruction": "", "input": " ", "output": "a"}]})
    with pytest.raises(ValueError, match="record 0, field 'instruction': is empty"):
        load_task(tmp_path, "mine")


def test_trace(tmp_path: Path) -> None:
    made = {
        name: [{"prompt": f"{name} {i}", "answer": "ABC"[i % 3]} for i in range(count)]
        for name, count in (("train", 12), ("eval", 4), ("test", 5))
    }
    in_folder(tmp_path / "LLM-CL-Benchmark_5000", "C-STANCE", made)
    task = load_task(tmp_path, "c-stance")
    assert task.dev[0] == {"id": "C-STANCE-dev-0", "input": "eval 0", "output": "A"}
    assert (task.metric, task.labels) == ("accuracy", ("A", "B", "C"))
    made["test"][1]["answer"] = ""
    in_folder(tmp_path / "LLM-CL-Benchmark_5000", "C-STANCE", made)
    with pytest.raises(ValueError, match=r"test.json, record 1, field 'answer': is empty"):
        load_task(tmp_path, "C-STANCE")


@pytest.mark.parametrize(
    ("format", "message"),
    [
        ("trace", r"record 0, field 'prompt': missing; the record has the fields: id, input"),
        ("o-lora", r"record 0, field 'sentence': missing"),
        ("alpaca", r"record 0, field 'instruction': missing"),
        ("natural-instructions", "holds a list, needs an object with 'Instances'"),
        ("jsonl", r"is no .jsonl file, as format 'jsonl' asks"),
        ("parquet", r"is no .parquet file"),
    ],
)
def test_another_format_than_the_files(tmp_path: Path, format: str, message: str) -> None:
    plain_task(tmp_path, "agnews")
    with pytest.raises(ValueError, match=message):
        load_task(tmp_path, "agnews", format=format)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        (prompt("x", ("a b", "c & d", "e")), ("a b", "c & d", "e")),
        ("Choose one from the option.\nOption: False, True \nx", ("False", "True")),
        ("no options here", ()),
        ("Option: only one.\n", ()),
        ("Option: a, , b.\n", ()),
        ("Adoption: a, b\n", ()),
    ],
)
def test_options_in_prompts(text: str, options: tuple[str, ...]) -> None:
    assert options_in(text) == options
